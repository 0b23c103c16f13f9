//! Who is production: the table of what may be done ([`table`]) and the changes of role themselves ([`change`]).

pub mod change;
pub mod lock;
pub mod peer;
pub mod row;
pub mod rules;
pub mod table;

pub use table::{Act, Next, Standing, Verdict, decide};
