//! From words to descriptors, one function a type.

use super::{
    ADDRESS, ADDRESS_MASK, ContextScope, DEVICE_TLB_SIZE, DOMAIN_ID, DRAIN_READS, DRAIN_WRITES,
    Descriptor, Device, FENCE, FUNCTION_MASK, GRANULARITY, GROUP, INDEX, INDEX_MASK,
    INDEX_SELECTIVE, INTERRUPT, INVALIDATION_HINT, InterruptScope, IotlbScope, LAST_IN_GROUP,
    PAGE_REQUEST_DRAIN, PASID, PASID_DEVICE_TLB_GLOBAL, PASID_DEVICE_TLB_SIZE, PASID_PRESENT,
    PASID_QUEUE_DEPTH, PASID_SOURCE_ID, PRIVATE_DATA_PRESENT, PageResponse, PasidCacheScope,
    PasidIotlbScope, PasidScope, QUEUE_DEPTH, QueueDepth, REQUESTER_ID, RESPONSE, SOURCE_ID,
    STATUS_ADDRESS, STATUS_DATA, STATUS_WRITE, StatusWrite, TYPE, TYPE_HIGH,
};
use crate::command::{CommandError, Narrow, Pasid, Span, check_reserved};

type Decoded = Result<Descriptor, CommandError>;

/// Refuses bits that are neither the type's nor among `known`.
fn known(word: u8, value: u64, known: u64) -> Result<(), CommandError> {
    let mine = match word {
        0 => TYPE.mask() | TYPE_HIGH.mask(),
        _ => 0,
    };
    check_reserved(word, value, !(mine | known))
}

fn reserved<T>(field: &'static str, value: u64) -> Result<T, CommandError> {
    Err(CommandError::ReservedValue { field, value })
}

fn domain_id(low: u64) -> u16 {
    DOMAIN_ID.get(low) as u16
}

fn pasid(low: u64) -> Pasid {
    Pasid::from_field(PASID.get(low))
}

/// Decodes ADDR and AM.
fn block(high: u64) -> Result<Span, CommandError> {
    known(
        1,
        high,
        ADDRESS.mask() | ADDRESS_MASK.mask() | INVALIDATION_HINT,
    )?;
    let address = high & ADDRESS.mask();
    let order = ADDRESS_MASK.get(high);
    let Some(span) = Span::new(address, order as u8) else {
        return reserved("AM", order);
    };
    // The specification has software align the address.
    check_reserved(1, high, address ^ span.start())?;
    Ok(span)
}

/// Decodes ADDR with S.
fn device_block(high: u64, size: u64) -> Result<Span, CommandError> {
    let address = high & ADDRESS.mask();
    match Span::from_address_field(address, high & size != 0) {
        Some(span) => Ok(span),
        None => reserved("ADDR", ADDRESS.get(high)),
    }
}

pub(super) fn context_cache(low: u64, high: u64) -> Decoded {
    known(1, high, 0)?;
    let domain_id = domain_id(low);
    let (scope, fields) = match GRANULARITY.get(low) {
        1 => (ContextScope::Global, 0),
        2 => (ContextScope::Domain { domain_id }, DOMAIN_ID.mask()),
        3 => {
            let scope = ContextScope::Device {
                domain_id,
                source_id: SOURCE_ID.get(low) as u16,
                function_mask: Narrow::from_field(FUNCTION_MASK.get(low)),
            };
            let fields = DOMAIN_ID.mask() | SOURCE_ID.mask() | FUNCTION_MASK.mask();
            (scope, fields)
        }
        value => return reserved("G", value),
    };
    known(0, low, GRANULARITY.mask() | fields)?;
    Ok(Descriptor::ContextCache { scope })
}

pub(super) fn iotlb(low: u64, high: u64) -> Decoded {
    let domain_id = domain_id(low);
    let (scope, fields) = match GRANULARITY.get(low) {
        1 => (IotlbScope::Global, 0),
        2 => (IotlbScope::Domain { domain_id }, DOMAIN_ID.mask()),
        3 => {
            let scope = IotlbScope::Pages {
                domain_id,
                span: block(high)?,
                is_leaf_only: high & INVALIDATION_HINT != 0,
            };
            (scope, DOMAIN_ID.mask())
        }
        value => return reserved("G", value),
    };
    let flags = DRAIN_READS | DRAIN_WRITES;
    known(0, low, GRANULARITY.mask() | flags | fields)?;
    if !matches!(scope, IotlbScope::Pages { .. }) {
        known(1, high, 0)?;
    }
    Ok(Descriptor::Iotlb {
        scope,
        drains_reads: low & DRAIN_READS != 0,
        drains_writes: low & DRAIN_WRITES != 0,
    })
}

/// Every bit of PFSID.
const FUNCTION: u64 = super::PHYSICAL_FUNCTION_LOW.mask() | super::PHYSICAL_FUNCTION_HIGH.mask();

pub(super) fn device_tlb(low: u64, high: u64) -> Decoded {
    known(0, low, FUNCTION | QUEUE_DEPTH.mask() | SOURCE_ID.mask())?;
    known(1, high, ADDRESS.mask() | DEVICE_TLB_SIZE)?;
    Ok(Descriptor::DeviceTlb {
        device: Device {
            source_id: SOURCE_ID.get(low) as u16,
            physical_function: Device::decode_function(low),
            queue_depth: QueueDepth::new(QUEUE_DEPTH.get(low) as u8),
        },
        span: device_block(high, DEVICE_TLB_SIZE)?,
    })
}

pub(super) fn interrupt_entry_cache(low: u64, high: u64) -> Decoded {
    known(1, high, 0)?;
    let scope = if low & INDEX_SELECTIVE == 0 {
        known(0, low, 0)?;
        InterruptScope::Global
    } else {
        known(0, low, INDEX_SELECTIVE | INDEX.mask() | INDEX_MASK.mask())?;
        InterruptScope::Entries {
            index: INDEX.get(low) as u16,
            mask: Narrow::from_field(INDEX_MASK.get(low)),
        }
    };
    Ok(Descriptor::InterruptEntryCache { scope })
}

pub(super) fn wait(low: u64, high: u64) -> Decoded {
    let flags = INTERRUPT | STATUS_WRITE | FENCE | PAGE_REQUEST_DRAIN;
    let status = if low & STATUS_WRITE == 0 {
        known(0, low, flags)?;
        known(1, high, 0)?;
        None
    } else {
        known(0, low, flags | STATUS_DATA.mask())?;
        known(1, high, STATUS_ADDRESS.mask())?;
        Some(StatusWrite {
            address: high,
            data: STATUS_DATA.get(low) as u32,
        })
    };
    Ok(Descriptor::Wait {
        status,
        has_interrupt: low & INTERRUPT != 0,
        is_fence: low & FENCE != 0,
        drains_page_requests: low & PAGE_REQUEST_DRAIN != 0,
    })
}

pub(super) fn pasid_iotlb(low: u64, high: u64) -> Decoded {
    let scope = match GRANULARITY.get(low) {
        2 => {
            known(1, high, 0)?;
            PasidIotlbScope::All
        }
        3 => PasidIotlbScope::Pages {
            span: block(high)?,
            is_leaf_only: high & INVALIDATION_HINT != 0,
        },
        value => return reserved("G", value),
    };
    known(0, low, GRANULARITY.mask() | DOMAIN_ID.mask() | PASID.mask())?;
    Ok(Descriptor::PasidIotlb {
        domain_id: domain_id(low),
        pasid: pasid(low),
        scope,
    })
}

pub(super) fn pasid_cache(low: u64, high: u64) -> Decoded {
    known(1, high, 0)?;
    let domain_id = domain_id(low);
    let (scope, fields) = match GRANULARITY.get(low) {
        0 => (PasidCacheScope::Domain { domain_id }, DOMAIN_ID.mask()),
        1 => {
            let pasid = pasid(low);
            let scope = PasidCacheScope::Pasid { domain_id, pasid };
            (scope, DOMAIN_ID.mask() | PASID.mask())
        }
        3 => (PasidCacheScope::Global, 0),
        value => return reserved("G", value),
    };
    known(0, low, GRANULARITY.mask() | fields)?;
    Ok(Descriptor::PasidCache { scope })
}

pub(super) fn pasid_device_tlb(low: u64, high: u64) -> Decoded {
    let fields = FUNCTION | PASID_QUEUE_DEPTH.mask() | PASID_SOURCE_ID.mask();
    let pasids = if high & PASID_DEVICE_TLB_GLOBAL == 0 {
        known(0, low, fields | PASID.mask())?;
        PasidScope::One(pasid(low))
    } else {
        known(0, low, fields)?;
        PasidScope::All
    };
    known(
        1,
        high,
        ADDRESS.mask() | PASID_DEVICE_TLB_SIZE | PASID_DEVICE_TLB_GLOBAL,
    )?;
    Ok(Descriptor::PasidDeviceTlb {
        device: Device {
            source_id: PASID_SOURCE_ID.get(low) as u16,
            physical_function: Device::decode_function(low),
            queue_depth: QueueDepth::new(PASID_QUEUE_DEPTH.get(low) as u8),
        },
        pasids,
        span: device_block(high, PASID_DEVICE_TLB_SIZE)?,
    })
}

pub(super) fn page_group_response(words: [u64; 4]) -> Decoded {
    let [low, high, first, second] = words;
    let fields = PASID_PRESENT | PRIVATE_DATA_PRESENT | RESPONSE.mask() | REQUESTER_ID.mask();
    let pasid = if low & PASID_PRESENT == 0 {
        known(0, low, fields)?;
        None
    } else {
        known(0, low, fields | PASID.mask())?;
        Some(pasid(low))
    };
    known(1, high, LAST_IN_GROUP | GROUP.mask())?;
    let response = PageResponse::from_field("response code", RESPONSE.get(low))?;
    let has_private_data = low & PRIVATE_DATA_PRESENT != 0;
    Ok(Descriptor::PageGroupResponse {
        requester_id: REQUESTER_ID.get(low) as u16,
        pasid,
        response,
        group: Narrow::from_field(GROUP.get(high)),
        is_last: high & LAST_IN_GROUP != 0,
        private_data: has_private_data.then_some([first, second]),
    })
}
