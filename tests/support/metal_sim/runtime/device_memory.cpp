// Device memory: one slot of address space for each buffer, checked and counted by the byte.
//
// A buffer ends where its pages end, so that even code without checks faults beyond it.

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "races.h"

namespace metal_sim {

namespace {

constexpr u64 kSlotBytes = 1ull << 32;
constexpr u64 kPageBytes = 4096;
constexpr u64 kAlignment = 16;

// Bytes that have been touched: by anybody, and by the threadgroup that runs.
struct Touched {
  u64* by_any;
  u64* by_group;
  u32* group_words;  // words of by_group that are not 0, to be cleared at the group's end
  u32 num_group_words;
  u64 bytes_by_lane, bytes_by_group, bytes_distinct;

  void create(u64 bytes) {
    u64 words = bytes / 64 + 1;
    by_any = (u64*)calloc(words, sizeof(u64));
    by_group = (u64*)calloc(words, sizeof(u64));
    group_words = (u32*)malloc(words * sizeof(u32));
  }
  void destroy() {
    free(by_any);
    free(by_group);
    free(group_words);
  }
  void mark(u64 word, u64 mask) {
    u64 fresh = mask & ~by_group[word];
    if (fresh == 0) return;
    if (by_group[word] == 0) group_words[num_group_words++] = word;
    by_group[word] |= mask;
    bytes_by_group += __builtin_popcountll(fresh);
    bytes_distinct += __builtin_popcountll(mask & ~by_any[word]);
    by_any[word] |= mask;
  }
  void touch(u64 offset, u64 bytes) {
    bytes_by_lane += bytes;
    while (bytes > 0) {
      u64 shift = offset % 64, n = bytes < 64 - shift ? bytes : 64 - shift;
      mark(offset / 64, (n == 64 ? ~0ull : (1ull << n) - 1) << shift);
      offset += n;
      bytes -= n;
    }
  }
  void end_group() {
    for (u32 i = 0; i < num_group_words; i++) by_group[group_words[i]] = 0;
    num_group_words = 0;
  }
};

struct Buffer {
  char* start;
  u64 bytes;
  bool is_output, is_initialised;
  char* pages;
  u64 pages_bytes;
  Cell* cells;  // check mode, outputs: what is written has races to look for
  Touched read, written;  // count mode
};

char* arena;
Buffer buffers[kMaxBuffers];

Buffer& buffer_at(const void* address) {
  return buffers[((u64)address - (u64)arena) / kSlotBytes];
}

void describe(Message* message, const Buffer& buffer, const char* address, u32 bytes) {
  message->buffer = &buffer - buffers;
  message->offset_bytes = address - buffer.start;
  message->variable_bytes = buffer.bytes;
  message->access_bytes = bytes;
}

void report_race(const Buffer& buffer, const Span& span, u64 byte, const Stamp& other,
                 Access other_access) {
  if (Message* message = report(Check::device_race, span.code)) {
    describe(message, buffer, buffer.start + byte, span.bytes);
    message->access = span.kind;
    message->other_access = other_access;
    message->other_thread = other.thread();
    message->other_group = other.group();
  }
}

void check_cells(Buffer& buffer, const Span& span) {
  Stamp now = stamp_now(device_memory, span.kind == Access::atomic);
  u64 offset = span.address - buffer.start;
  for (u64 byte = offset; byte < offset + span.bytes; byte++) {
    Cell& cell = buffer.cells[byte];
    if (conflict_of(cell.write, now) != Conflict::none) {
      report_race(buffer, span, byte, cell.write, Access::write);
    } else if (span.is_written && conflict_with_reads(cell, now) != Conflict::none) {
      report_race(buffer, span, byte, cell.read, Access::read);
    }
    if (span.is_read) {
      if (cell.write.owner == 0 && !buffer.is_initialised) {
        if (Message* message = report(Check::uninitialised_device_read, span.code)) {
          describe(message, buffer, buffer.start + byte, span.bytes);
        }
      }
      note_read(cell, now);
    }
    if (span.is_written) note_write(cell, now);
  }
}

}  // namespace

bool create_device_memory() {
  void* memory = mmap(nullptr, kSlotBytes * kMaxBuffers, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  arena = memory == MAP_FAILED ? nullptr : (char*)memory;
  return arena != nullptr;
}

bool is_device(const void* address) {
  return (u64)address - (u64)arena < kSlotBytes * kMaxBuffers;
}

void access_device(const Span& span) {
  Buffer& buffer = buffer_at(span.address);
  u64 offset = span.address - buffer.start;  // wraps for what lies before
  if (offset > buffer.bytes || offset + span.bytes > buffer.bytes) {
    if (Message* message = report(Check::device_bounds, span.code)) {
      describe(message, buffer, span.address, span.bytes);
      message->access = span.kind;
    }
    abandon();
  }
  if (span.is_written && !buffer.is_output) {
    if (Message* message = report(Check::write_to_input, span.code)) {
      describe(message, buffer, span.address, span.bytes);
    }
    abandon();
  }
  if (launch.mode == Mode::check && buffer.cells != nullptr) check_cells(buffer, span);
  if (launch.mode == Mode::count) {
    if (span.is_read) buffer.read.touch(offset, span.bytes);
    if (span.is_written) buffer.written.touch(offset, span.bytes);
  }
}

void begin_device_launch() {
  for (Buffer& buffer : buffers) {
    if (buffer.start == nullptr) continue;
    if (launch.mode == Mode::check && buffer.is_output) {
      buffer.cells = (Cell*)calloc(buffer.bytes + 1, sizeof(Cell));
    }
    if (launch.mode == Mode::count) {
      buffer.read.create(buffer.bytes);
      buffer.written.create(buffer.bytes);
    }
  }
}

void end_device_threadgroup() {
  if (launch.mode != Mode::count) return;
  for (Buffer& buffer : buffers) {
    if (buffer.start == nullptr) continue;
    buffer.read.end_group();
    buffer.written.end_group();
  }
}

void check_outputs() {
  if (launch.mode != Mode::check) return;
  for (Buffer& buffer : buffers) {
    if (buffer.cells == nullptr || buffer.is_initialised) continue;
    u64 missing = 0, first = 0;
    for (u64 byte = buffer.bytes; byte-- > 0;) {
      if (buffer.cells[byte].write.owner != 0) continue;
      missing++;
      first = byte;
    }
    if (missing == 0) continue;
    // The address is no code; it only tells the messages of several outputs apart.
    if (Message* message = report(Check::unwritten_output, buffer.start)) {
      describe(message, buffer, buffer.start + first, missing);
    }
  }
}

void report_device_fault(const char* address, const void* code) {
  Buffer& buffer = buffer_at(address);
  if (Message* message = report(buffer.start ? Check::device_bounds : Check::wild_pointer, code)) {
    if (buffer.start != nullptr) describe(message, buffer, address, 0);
  }
}

}  // namespace metal_sim

using namespace metal_sim;

extern "C" {

// Makes a buffer and returns where it starts; its bytes are 0.
void* metal_sim_create_buffer(u32 index, u64 bytes, u32 is_output, u32 is_initialised) {
  Buffer& buffer = buffers[index];
  char* end = arena + kSlotBytes * index + kSlotBytes / 2;
  u64 rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  buffer = {};
  buffer.pages_bytes = (rounded + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (buffer.pages_bytes == 0) buffer.pages_bytes = kPageBytes;
  buffer.pages = end - buffer.pages_bytes;
  void* pages = mmap(buffer.pages, buffer.pages_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return nullptr;
  buffer.start = end - rounded;
  buffer.bytes = bytes;
  buffer.is_output = is_output;
  buffer.is_initialised = is_initialised;
  return buffer.start;
}

void metal_sim_destroy_buffer(u32 index) {
  Buffer& buffer = buffers[index];
  if (buffer.start == nullptr) return;
  mmap(buffer.pages, buffer.pages_bytes, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  free(buffer.cells);
  buffer.read.destroy();
  buffer.written.destroy();
  buffer = {};
}

// By lane, by threadgroup, distinct: of what was read, then of what was written.
void metal_sim_buffer_counts(u32 index, u64* out) {
  const Touched touched[] = {buffers[index].read, buffers[index].written};
  for (const Touched& bytes : touched) {
    *out++ = bytes.bytes_by_lane;
    *out++ = bytes.bytes_by_group;
    *out++ = bytes.bytes_distinct;
  }
}
}
