//! Deterministic chance: tasks run while the engine works.

use super::object::SimFunc;
use super::shared::Shared;
use crate::port::TaskId;

/// A small generator of pseudo-random numbers (xorshift64*).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// A generator that always says the same for the same `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        usize::try_from(mixed % limit as u64).unwrap_or(0)
    }
}

/// Tasks run a little at the beginning of each port call.
#[derive(Debug)]
pub(super) struct Noise {
    pub(super) chance: Chance,
    /// More tasks are not born.
    pub(super) max_tasks: usize,
}

impl Shared {
    /// Lets some tasks do something, if there is noise.
    pub(super) fn make_noise(&self) {
        let Some(mut noise) = self.world().noise.take() else {
            return;
        };
        for _ in 0..noise.chance.below(4) {
            self.one_noise(&mut noise);
        }
        self.world().noise = Some(noise);
    }

    fn one_noise(&self, noise: &mut Noise) {
        let mut world = self.world();
        let (tasks, functions) = (world.tasks.len(), world.functions.len());
        if tasks == 0 || functions == 0 {
            return;
        }
        let chance = &mut noise.chance;
        let Some(id) = world.tasks.keys().nth(chance.below(tasks)).copied() else {
            return;
        };
        match chance.below(19) {
            0..5 => {
                world.begin_call(id, SimFunc(chance.below(functions)));
            }
            5..10 => {
                drop(world);
                self.step(id);
            }
            10..13 => {
                world.leave(id);
            }
            13 if tasks < noise.max_tasks => {
                world.spawn("child", Some(id));
            }
            14 if tasks < noise.max_tasks => {
                world.fork(id);
            }
            16 => {
                world.begin_end(id, chance.below(4), SimFunc(chance.below(functions)));
            }
            17 => {
                world.go_cold(id);
            }
            18 => {
                world.go_helper(id);
            }
            15 if tasks > 1 => {
                world.tasks.remove(&id);
            }
            _ => {}
        }
    }
}

impl super::shared::World {
    /// A child that is in the middle of the same as its parent.
    pub(super) fn fork(&mut self, parent: TaskId) -> Option<TaskId> {
        let child = self.tasks.get(&parent)?.clone();
        Some(self.insert(child))
    }
}
