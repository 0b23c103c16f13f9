//! The snapshot engine against its rules: each test has the name of the rule it proves.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod copies;
mod files;
mod history;
mod overlay;
mod random;
mod restores;
mod views;
mod views_race;
mod world;
mod writes;
