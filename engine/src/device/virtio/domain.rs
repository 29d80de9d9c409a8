//! What can be attached to a device behind a virtio-iommu.

use alloc::sync::Arc;
use core::fmt;

use crate::device::{DirectRegion, DomainKind, Hwpt};
use crate::domain::virtio::{Transport, VirtioDomain};
use crate::domain::{Domain, DomainError};

/// A domain for endpoints of a virtio-iommu: nothing passes, all passes, or the device translates.
pub struct VirtioHwpt<T: Transport> {
    kind: DomainKind,
    domain: Option<Arc<VirtioDomain<T>>>,
}

impl<T: Transport> VirtioHwpt<T> {
    /// Creates one in which nothing passes, at any virtio-iommu.
    pub const fn blocked() -> Self {
        Self {
            kind: DomainKind::Blocked,
            domain: None,
        }
    }

    /// Creates one in which everything passes, at any virtio-iommu that has such domains.
    pub const fn identity() -> Self {
        Self {
            kind: DomainKind::Identity,
            domain: None,
        }
    }

    /// Creates one for a domain of one virtio-iommu, to which nobody else attaches.
    pub const fn paging(domain: Arc<VirtioDomain<T>>) -> Self {
        Self {
            kind: DomainKind::Paging,
            domain: Some(domain),
        }
    }

    /// Returns the domain, if there are translations.
    pub const fn translations(&self) -> Option<&Arc<VirtioDomain<T>>> {
        self.domain.as_ref()
    }
}

impl<T: Transport + 'static> Hwpt for VirtioHwpt<T> {
    fn kind(&self) -> DomainKind {
        self.kind
    }

    fn domain(&self) -> Option<Arc<dyn Domain>> {
        let domain = Arc::clone(self.domain.as_ref()?);
        Some(domain)
    }

    fn map_direct(&self, region: DirectRegion) -> Result<(), DomainError> {
        match (&self.domain, self.kind) {
            (Some(domain), _) => domain.map_direct(region.range, region.oa, region.prot),
            (None, DomainKind::Identity) => Ok(()),
            (None, _) => Err(DomainError::Unsupported {
                what: "regions of a domain in which nothing passes",
            }),
        }
    }
}

impl<T: Transport> fmt::Debug for VirtioHwpt<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioHwpt")
            .field("kind", &self.kind)
            .field("domain", &self.domain)
            .finish()
    }
}
