//! AMD device table: which tables a device's requests go through.
//!
//! Source: *AMD I/O Virtualization Technology (IOMMU) Specification*, document 48882.
//!
//! ```text
//! register        memory
//! DevTabBase ---> device table --[DeviceID]--> DTE ---> version 1 tables
//!                                               |
//!                                               +-----> GCR3 table --[PASID]--> version 2 tables
//! ```

mod device_table;
mod dte;
mod gcr3;

pub use self::device_table::{DeviceTable, DeviceTableError};
pub use self::dte::{
    Dte, DteError, GuestTables, HostTables, InterruptTable, Interrupts, PortIo, SystemManagement,
    Tracking, Translation, UpdateRules,
};
pub use self::gcr3::{Gcr3Entry, Gcr3Error, Gcr3Rules, Gcr3Table};
