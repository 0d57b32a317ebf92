// The Metal standard library for clang, in the order in which its parts need each other.
#pragma once

#define MSL_DEVICE __attribute__((address_space(1)))
#define MSL_CONSTANT __attribute__((address_space(2)))
#define MSL_THREADGROUP __attribute__((address_space(3)))

#include "abi.h"
#include "types.h"
#include "traits.h"
#include "math.h"
#include "integer.h"
#include "vectors.h"
#include "simd.h"
#include "matrix.h"
#include "atomics.h"
#include "arguments.h"
