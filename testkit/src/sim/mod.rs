//! The fault seam: in-memory twins of disks, stores and file systems under one simulated power supply.
//!
//! What the twins promise is exactly what `model::ports` promises and nothing more; where a real disk or store may do one
//! of several things, the twin draws one. What is drawn depends only on the generator handed in and on the order of calls.

mod fault;
mod files;
mod layers;
mod medium;
mod pages;
mod power;
mod store;
mod tear;

pub use fault::{Held, Op};
pub use files::{Order, SimFiles};
pub use medium::SimMedium;
pub use power::{Image, SimPower};
pub use store::SimStore;
pub use tear::Tear;

#[cfg(test)]
mod tests;
