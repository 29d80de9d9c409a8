//! What only the owner of a device's configuration space can switch.

use core::fmt;

use crate::device::DeviceAddress;

/// Capabilities of devices that translation depends on. Called with locks held: it must not call the
/// registry.
pub trait DeviceControl: Send + Sync + fmt::Debug {
    /// Returns whether a device can cache translations (ATS) and should; always the same.
    fn has_ats(&self, device: DeviceAddress) -> bool {
        let _ = device;
        false
    }

    /// Returns how many invalidations of its translations a device takes at once (PCI Express Base Specification,
    /// 10.5.1.2, "Invalidate Queue Depth"): 1 to 32, where 1 is safe for all of them; always the same.
    fn ats_queue_depth(&self, device: DeviceAddress) -> u8 {
        let _ = device;
        1
    }

    /// Returns the requester ID of the physical function of a virtual one; always the same.
    fn physical_function(&self, device: DeviceAddress) -> Option<u16> {
        let _ = device;
        None
    }

    /// Lets a device ask for translations, or forbids it: when this returns it has none left.
    fn set_ats(&self, device: DeviceAddress, is_enabled: bool) {
        let _ = (device, is_enabled);
    }

    /// Lets a device send PASIDs, or forbids it. Changes while ATS is off only.
    fn set_pasids(&self, device: DeviceAddress, are_enabled: bool) {
        let _ = (device, are_enabled);
    }

    /// Returns whether a device can ask for pages that are not there (PRI) and should; always the same.
    fn has_page_requests(&self, device: DeviceAddress) -> bool {
        let _ = device;
        false
    }

    /// Lets a device ask for pages, or forbids it. It is allowed after ATS was enabled and forbidden before ATS
    /// is disabled. What a device asked for before is answered all the same.
    fn set_page_requests(&self, device: DeviceAddress, are_enabled: bool) {
        let _ = (device, are_enabled);
    }

    /// Returns whether responses to requests with a PASID have to name it (*PCI Express Base Specification*,
    /// section 10.5.2.3, PRG Response PASID Required); always the same.
    fn needs_pasids_in_responses(&self, device: DeviceAddress) -> bool {
        let _ = device;
        true
    }

    /// Returns whether a device that is no PCI function can wait while a fault is resolved, as firmware says;
    /// always the same.
    fn can_stall(&self, device: DeviceAddress) -> bool {
        let _ = device;
        false
    }
}

/// Devices that cache nothing, and whose PASIDs somebody else switches.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainDevices;

impl DeviceControl for PlainDevices {}
