// How a kernel's arguments are made from buffers and from the thread's place; and, last of all, the
// keywords of address spaces.
#pragma once

namespace metal_sim {

// A buffer takes the type of the parameter that it is passed to.
struct BufferPointer {
  void* address;
  template <class T>
  MSL_INLINE operator T*() const {
    return (T*)address;
  }
};
struct BufferReference {
  void* address;
  template <class T>
  MSL_INLINE operator T&() const {
    return *(T*)address;
  }
};

// A position may be declared with three components, two, or one.
struct Position {
  uint3 value;
  MSL_INLINE operator uint() const { return value.x; }
  MSL_INLINE operator uint2() const { return value.xy; }
  MSL_INLINE operator uint3() const { return value; }
  MSL_INLINE operator ushort() const { return value.x; }
  MSL_INLINE operator ushort2() const { return __builtin_convertvector(value.xy, ushort2); }
  MSL_INLINE operator ushort3() const { return __builtin_convertvector(value, ushort3); }
};

}  // namespace metal_sim

// The strict pass tells address spaces apart and only checks types; in code that runs, all of
// memory is one, and only `constant` still means that nothing is written.
#ifdef MSL_STRICT
#define device MSL_DEVICE
#define constant const MSL_CONSTANT
#define threadgroup MSL_THREADGROUP
#else
#define device
#define constant const
#define threadgroup
#endif
#define thread
#define kernel
