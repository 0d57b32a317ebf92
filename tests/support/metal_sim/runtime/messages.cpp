// Messages of checks, as records: Python turns them into sentences with names and source lines.

#include <dlfcn.h>

#include <cstring>

#include "runtime.h"

namespace metal_sim {

namespace {

constexpr u32 kMaxMessages = 32;

struct Spoken {
  Check check;
  const void* code;
  u32 line;
};

Message messages[kMaxMessages];
Spoken spoken[kMaxMessages];
u32 num_messages;

}  // namespace

Message* report(Check check, const void* code, u32 line) {
  // A defect in a loop, or in every thread, is one defect.
  for (u32 i = 0; i < num_messages; i++) {
    if (spoken[i].check == check && spoken[i].code == code && spoken[i].line == line) {
      return nullptr;
    }
  }
  if (num_messages == kMaxMessages) return nullptr;
  spoken[num_messages] = {check, code, line};
  Message* message = &messages[num_messages++];
  memset(message, 0, sizeof *message);
  message->check = check;
  message->line = line;
  message->buffer = -1;
  Dl_info library;
  if (code != nullptr && dladdr(code, &library)) {
    message->code_offset = (u64)code - (u64)library.dli_fbase;
  }
  for (u32 i = 0; i < 3; i++) message->group[i] = launch.group[i];
  message->thread = thread_index();
  return message;
}

void add_gathering(Message* message, Gathering gathering) {
  constexpr u32 room = sizeof message->gatherings / sizeof message->gatherings[0];
  if (message->num_gatherings < room) message->gatherings[message->num_gatherings++] = gathering;
}

void set_name(Message* message, const char* name) {
  strncpy(message->name, name, sizeof message->name - 1);
}

void clear_messages() { num_messages = 0; }

}  // namespace metal_sim

extern "C" {
metal_sim::u32 metal_sim_num_messages() { return metal_sim::num_messages; }
const metal_sim::Message* metal_sim_messages() { return metal_sim::messages; }
}
