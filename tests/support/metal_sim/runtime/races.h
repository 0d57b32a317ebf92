// Races: a shadow of every byte that is shared, with the last write and the reads since.
//
// Two accesses are ordered if one thread makes both, if a threadgroup barrier that orders their
// memory lies between, or, within a simdgroup, a simdgroup barrier that does.  This is decided from
// the barriers passed, not from what happened to run first: every order finds the same.
#pragma once

#include "runtime.h"

namespace metal_sim {

struct Stamp {
  u32 owner;  // 1 + thread + kMaxThreads * threadgroup; 0: nobody
  u32 epoch;
  u32 simdgroup_barriers : 31;
  u32 is_atomic : 1;

  u32 thread() const { return (owner - 1) % kMaxThreads; }
  u32 group() const { return (owner - 1) / kMaxThreads; }
};

struct Cell {
  Stamp write;
  Stamp read;  // the latest of the readers; the masks know the others
  u32 reading_lanes;
  u32 reading_simdgroups;
  bool is_read_by_groups;  // by more than one threadgroup
};

inline Stamp stamp_now(Memory memory, bool is_atomic) {
  const Simdgroup& group = launch.simdgroup[launch.current_simdgroup];
  return {1 + thread_index() + kMaxThreads * launch.group_index, launch.epoch[memory],
          group.barriers[memory], is_atomic};
}

enum class Conflict { none, in_simdgroup, in_threadgroup, between_threadgroups };

inline Conflict conflict_of(const Stamp& before, const Stamp& now) {
  if (before.owner == 0 || before.owner == now.owner) return Conflict::none;
  if (before.is_atomic && now.is_atomic) return Conflict::none;
  if (before.group() != now.group()) return Conflict::between_threadgroups;
  if (before.epoch != now.epoch) return Conflict::none;
  if (before.thread() / kLanes != now.thread() / kLanes) return Conflict::in_threadgroup;
  bool is_ordered = before.simdgroup_barriers != now.simdgroup_barriers;
  return is_ordered ? Conflict::none : Conflict::in_simdgroup;
}

// Conflict of a write with the reads since the last write.
inline Conflict conflict_with_reads(const Cell& cell, const Stamp& now) {
  const Stamp& read = cell.read;
  if (read.owner == 0 || (read.is_atomic && now.is_atomic)) return Conflict::none;
  if (cell.is_read_by_groups || read.group() != now.group()) {
    return Conflict::between_threadgroups;
  }
  if (read.epoch != now.epoch) return Conflict::none;
  u32 simdgroup = now.thread() / kLanes, lane = now.thread() % kLanes;
  if (cell.reading_simdgroups & ~(1u << simdgroup)) return Conflict::in_threadgroup;
  bool is_ordered = read.simdgroup_barriers != now.simdgroup_barriers;
  if (!is_ordered && cell.reading_lanes & ~(1u << lane)) return Conflict::in_simdgroup;
  return Conflict::none;
}

inline void note_read(Cell& cell, const Stamp& now) {
  Stamp& read = cell.read;
  u32 simdgroup = now.thread() / kLanes, lane = now.thread() % kLanes;
  bool is_new_group = read.owner != 0 && read.group() != now.group();
  if (is_new_group) cell.is_read_by_groups = true;
  bool is_new_epoch = read.owner == 0 || is_new_group || read.epoch != now.epoch;
  if (is_new_epoch) cell.reading_simdgroups = 0;
  if (is_new_epoch || read.thread() / kLanes != simdgroup ||
      read.simdgroup_barriers != now.simdgroup_barriers) {
    cell.reading_lanes = 0;
  }
  cell.reading_simdgroups |= 1u << simdgroup;
  cell.reading_lanes |= 1u << lane;
  read = now;
}

inline void note_write(Cell& cell, const Stamp& now) {
  cell.write = now;
  cell.read = {};
  cell.is_read_by_groups = false;
}

}  // namespace metal_sim
