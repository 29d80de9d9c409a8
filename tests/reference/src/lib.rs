//! Page-table walkers written from the hardware specifications, to judge `iopt` by.
//!
//! A judge that shares code with what it judges repeats its mistakes, so this crate depends on
//! nothing, decodes raw words with plain shifts and masks, and numbers levels as each manual does.
//! It reads tables and never writes one.
//!
//! - [`arm`], [`vtd`], [`x86`], [`amd`] and [`riscv`] hold one architecture each: a `Config` of raw
//!   numbers, `walk` (what the hardware answers for one address) and `enumerate` (every leaf item).
//! - [`Table`] holds any of them.
//! - [`context`] starts one step earlier, at the registers: which table does a device use?
//!
//! Every function is total: whatever the memory holds, it returns, and it neither panics nor
//! overflows. A walk ends because each step goes to a lower level; an enumeration also has a limit.
//!
//! ```
//! use iopt_reference::{Fault, PageMap, Table, vtd};
//!
//! let mut memory = PageMap::new();
//! memory.write64(0x1000, 0x2003); // level 3, entry 0: table at 0x2000
//! memory.write64(0x2000, 0x4020_0083); // level 2, entry 0: 2 MiB page at 0x4020_0000
//! let table = Table::VtdSecond(vtd::Config::new(0x1000, 3));
//!
//! let translation = table.walk(&memory, 0x1234).unwrap();
//! assert_eq!(translation.oa, 0x4020_1234);
//! assert_eq!(translation.page_len, 0x20_0000);
//! assert_eq!(table.walk(&memory, 0x20_0000), Err(Fault::NotMapped { level: 2 }));
//! ```

pub mod amd;
pub mod arm;
pub mod context;
mod memory;
pub mod riscv;
mod scan;
mod table;
mod translation;
pub mod vtd;
mod word;
pub mod x86;

pub use memory::{Memory, PageMap};
pub use scan::{Item, Rigour, ScanError};
pub use table::Table;
pub use translation::{Fault, MemoryAttributes, Setup, Translation};
