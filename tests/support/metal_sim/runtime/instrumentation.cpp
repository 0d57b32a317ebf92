// What the compiler's instrumentation calls.
//
// Kernels are compiled with -fsanitize=thread and -fsanitize=bounds,..., but linked with this in
// place of the sanitizers: one call for every access to memory is all that checks and counts need.

#include <cstring>

#include "runtime.h"

#define CODE __builtin_return_address(0)

using namespace metal_sim;

namespace {

void check_alignment(const Span& span) {
  if ((u64)span.address % span.bytes == 0) return;
  if (Message* message = report(Check::misaligned, span.code)) {
    message->access = span.kind;
    message->access_bytes = span.bytes;
    message->offset_bytes = (u64)span.address % span.bytes;
  }
}

// Almost all accesses of unoptimized code are to a thread's own stack, and of no interest.
void access(void* address, u64 bytes, Access kind, const void* code, bool must_be_aligned) {
  bool is_on_device = is_device(address);
  if (!is_on_device && !is_threadgroup(address)) return;
  if (bytes == 0) return;
  Span span = {(char*)address, (u32)bytes, kind, code, kind == Access::write, kind == Access::read};
  if (must_be_aligned && launch.mode == Mode::check) check_alignment(span);
  is_on_device ? access_device(span) : access_threadgroup(span);
}

void report_place(Check check, const void* code, u64 value) {
  if (Message* message = report(check, code)) message->offset_bytes = (int64_t)value;
}

struct SourceLocation {
  const char* file;
  u32 line, column;
};
struct TypeDescriptor {
  uint16_t kind, information;
  char name[1];
};
struct OutOfBoundsData {
  SourceLocation location;
  const TypeDescriptor* array;
  const TypeDescriptor* index;
};

}  // namespace

extern "C" {

#define ACCESSES(bytes)                                                                     \
  void __tsan_read##bytes(void* a) { access(a, bytes, Access::read, CODE, true); }          \
  void __tsan_write##bytes(void* a) { access(a, bytes, Access::write, CODE, true); }        \
  void __tsan_unaligned_read##bytes(void* a) { access(a, bytes, Access::read, CODE, false); } \
  void __tsan_unaligned_write##bytes(void* a) {                                             \
    access(a, bytes, Access::write, CODE, false);                                           \
  }                                                                                         \
  void __tsan_read_write##bytes(void* a) {                                                  \
    access(a, bytes, Access::read, CODE, true);                                             \
    access(a, bytes, Access::write, CODE, true);                                            \
  }                                                                                         \
  void __tsan_unaligned_read_write##bytes(void* a) {                                        \
    access(a, bytes, Access::read, CODE, false);                                            \
    access(a, bytes, Access::write, CODE, false);                                           \
  }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void* __tsan_memcpy(void* to, const void* from, u64 bytes) {
  access((void*)from, bytes, Access::read, CODE, false);
  access(to, bytes, Access::write, CODE, false);
  return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, u64 bytes) {
  access((void*)from, bytes, Access::read, CODE, false);
  access(to, bytes, Access::write, CODE, false);
  return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, u64 bytes) {
  access(to, bytes, Access::write, CODE, false);
  return memset(to, value, bytes);
}
void __tsan_init() {}

void metal_sim_atomic(const volatile void* address, u32 bytes, u32 accesses, const void* code) {
  counts.atomics++;
  Span span = {(char*)address, bytes, Access::atomic, code, (accesses & atomic_write) != 0,
               (accesses & atomic_read) != 0};
  if (launch.mode == Mode::run) return;
  if (is_device(span.address)) access_device(span);
  if (is_threadgroup(span.address)) access_threadgroup(span);
}

void __ubsan_handle_out_of_bounds(OutOfBoundsData* data, u64 index) {
  if (Message* message = report(Check::array_bounds, CODE)) {
    message->offset_bytes = (int32_t)index;
    set_name(message, data->array->name);
  }
  abandon();
}
void __ubsan_handle_divrem_overflow(void*, u64, u64) {
  report_place(Check::integer_division, CODE, 0);
  abandon();
}
void __ubsan_handle_shift_out_of_bounds(void*, u64, u64 bits) {
  report_place(Check::shift, CODE, bits);
}

// Rounds to nearest, ties to even.  Clang calls it where the processor has no such instruction.
__bf16 __truncsfbf2(float x) {
  u32 bits = __builtin_bit_cast(u32, x);
  bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  uint16_t upper = is_nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return __builtin_bit_cast(__bf16, upper);
}
}
