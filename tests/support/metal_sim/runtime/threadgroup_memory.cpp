// Threadgroup memory: one arena for the threadgroup that runs, with its variables far apart.

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "races.h"

namespace metal_sim {

namespace {

constexpr u64 kMaxBytes = 32768;  // Metal's limit for a threadgroup
constexpr u32 kMaxVariables = 64;
// Between variables: an index that is too large does not at once hit the next one.
constexpr u64 kGapBytes = 4096;
constexpr u64 kArenaBytes = kMaxBytes + kMaxVariables * (kGapBytes + 256) + kGapBytes;

struct Variable {
  u32 id;
  u64 offset, bytes;
  const char* name;
};

char* arena;
Cell* cells;
Variable variables[kMaxVariables];
u32 num_variables;
u64 used_bytes, next_offset;

// The variable that a byte belongs to, or the nearest one.
const Variable& variable_near(u64 offset) {
  const Variable* nearest = &variables[0];
  u64 nearest_distance = ~0ull;
  for (u32 i = 0; i < num_variables; i++) {
    const Variable& variable = variables[i];
    u64 end = variable.offset + variable.bytes;
    u64 distance = offset < variable.offset ? variable.offset - offset
                   : offset >= end          ? offset - end + 1
                                            : 0;
    if (distance < nearest_distance) {
      nearest = &variable;
      nearest_distance = distance;
    }
  }
  return *nearest;
}

void describe(Message* message, const Variable& variable, u64 offset, const Span& span) {
  set_name(message, variable.name);
  message->offset_bytes = (int64_t)(offset - variable.offset);
  message->variable_bytes = variable.bytes;
  message->access_bytes = span.bytes;
  message->access = span.kind;
}

void report_race(Conflict conflict, const Span& span, const Variable& variable, u64 offset,
                 const Stamp& other, Access other_access) {
  bool is_in_simdgroup = conflict == Conflict::in_simdgroup;
  Check check = is_in_simdgroup ? Check::simdgroup_race : Check::threadgroup_race;
  if (Message* message = report(check, span.code)) {
    describe(message, variable, offset, span);
    message->other_access = other_access;
    message->other_thread = other.thread();
    message->other_group = other.group();
  }
}

// What an earlier threadgroup left behind is nothing to this one.
void forget_if_stale(Cell& cell) {
  u32 first = launch.first_epoch[threadgroup_memory];
  if (cell.write.epoch < first) cell.write = {};
  if (cell.read.epoch < first) {
    cell.read = {};
    cell.is_read_by_groups = false;
  }
}

void check_cells(const Span& span, const Variable& variable) {
  Stamp now = stamp_now(threadgroup_memory, span.kind == Access::atomic);
  u64 start = span.address - arena;
  for (u64 offset = start; offset < start + span.bytes; offset++) {
    Cell& cell = cells[offset];
    forget_if_stale(cell);
    Conflict with_write = conflict_of(cell.write, now);
    if (with_write != Conflict::none) {
      report_race(with_write, span, variable, offset, cell.write, Access::write);
    } else if (span.is_written) {
      Conflict with_reads = conflict_with_reads(cell, now);
      if (with_reads != Conflict::none) {
        report_race(with_reads, span, variable, offset, cell.read, Access::read);
      }
    }
    if (span.is_read) {
      if (cell.write.owner == 0) {
        if (Message* message = report(Check::uninitialised_threadgroup_read, span.code)) {
          describe(message, variable, offset, span);
        }
      }
      note_read(cell, now);
    }
    if (span.is_written) note_write(cell, now);
  }
}

}  // namespace

bool create_threadgroup_memory() {
  void* memory = mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
  if (memory == MAP_FAILED) return false;
  arena = (char*)memory;
  cells = (Cell*)calloc(kArenaBytes, sizeof(Cell));
  return cells != nullptr;
}

bool is_threadgroup(const void* address) { return (u64)address - (u64)arena < kArenaBytes; }

void begin_threadgroup() {
  num_variables = 0;
  used_bytes = 0;
  next_offset = kGapBytes;
}

void access_threadgroup(const Span& span) {
  if (span.is_read) counts.threadgroup_bytes_read += span.bytes;
  if (span.is_written) counts.threadgroup_bytes_written += span.bytes;
  u64 offset = span.address - arena;
  const Variable& variable = variable_near(offset);
  if (offset < variable.offset || offset + span.bytes > variable.offset + variable.bytes) {
    if (Message* message = report(Check::threadgroup_bounds, span.code)) {
      describe(message, variable, offset, span);
    }
    abandon();
  }
  if (launch.mode == Mode::check) check_cells(span, variable);
}

}  // namespace metal_sim

using namespace metal_sim;

extern "C" void* metal_sim_threadgroup_variable(u32 id, u64 bytes, const char* name) {
  // The first lane that comes to a declaration makes the variable; the others find it.
  for (u32 i = 0; i < num_variables; i++) {
    if (variables[i].id == id) return arena + variables[i].offset;
  }
  used_bytes += (bytes + 15) / 16 * 16;
  if (used_bytes > kMaxBytes || num_variables == kMaxVariables) {
    if (Message* message = report(Check::threadgroup_memory_size, nullptr, id + 1)) {
      set_name(message, name);
      message->line = 0;
      message->variable_bytes = used_bytes;
    }
    abandon();
  }
  variables[num_variables++] = {id, next_offset, bytes, name};
  char* address = arena + next_offset;
  next_offset += (bytes + kGapBytes + 255) / 256 * 256;
  memset(address, 0xff, bytes);  // NaN in every floating-point type
  return address;
}
