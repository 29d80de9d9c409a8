//! Buffers that the kernel keeps pinned: those registered with an `io_uring`.
//!
//! The ring never does I/O. A buffer that is registered is pinned for long by the kernel, each page
//! at its physical address, until its slot is given to another or emptied.

#![expect(unsafe_code, reason = "registers memory by address")]

use core::ffi::c_void;
use core::ptr;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, retry_on_intr};
use rustix::io_uring::{
    IoringRegisterOp, IoringRsrcFlags, io_uring_params, io_uring_ptr, io_uring_register,
    io_uring_rsrc_register, io_uring_rsrc_update2, io_uring_setup, iovec,
};

/// Most buffers of a ring.
pub(super) const MAX_SLOTS: u32 = 1 << 14;
/// Most bytes of a buffer.
pub(super) const MAX_BUFFER_LEN: u64 = 1 << 30;

/// A ring with slots for buffers.
#[derive(Debug)]
pub(super) struct Ring {
    fd: OwnedFd,
}

impl Ring {
    /// Makes a ring with `slot_count` empty slots, at most [`MAX_SLOTS`]. Needs Linux 5.19.
    pub(super) fn new(slot_count: u32) -> Result<Self, RingError> {
        let mut params = io_uring_params::default();
        // SAFETY: no flags are set, so that no file descriptor is passed.
        let fd = unsafe { io_uring_setup(1, &mut params) }.map_err(RingError::Setup)?;
        let mut slots = io_uring_rsrc_register::default();
        slots.nr = slot_count;
        slots.flags = IoringRsrcFlags::REGISTER_SPARSE;
        let ring = Self { fd };
        // SAFETY: empty slots name no memory.
        let registered = unsafe { ring.call(IoringRegisterOp::RegisterBuffers2, &slots) };
        registered.map_err(RingError::Slots)?;
        Ok(ring)
    }

    /// Pins `len` bytes at `start`, of whole pages, in the empty slot `slot`.
    ///
    /// The ring only holds the pages and never touches them; where nothing is mapped, the call
    /// fails.
    pub(super) fn fill(&self, slot: u32, start: *mut u8, len: u64) -> Result<(), Errno> {
        self.update(slot, start.cast(), len as usize)
    }

    /// Releases the buffer in `slot`.
    pub(super) fn empty(&self, slot: u32) {
        // One that cannot be emptied is released when it is filled anew, or with the ring.
        let _ = self.update(slot, ptr::null_mut(), 0);
    }

    fn update(&self, slot: u32, start: *mut c_void, len: usize) -> Result<(), Errno> {
        let buffer = iovec {
            iov_base: start,
            iov_len: len,
        };
        let mut update = io_uring_rsrc_update2::default();
        update.offset = slot;
        update.data = io_uring_ptr::new((&raw const buffer).cast_mut().cast());
        update.nr = 1;
        // SAFETY: `buffer` outlives the call. The memory that it names is pinned, not touched: no
        // request is ever submitted to the ring.
        unsafe { self.call(IoringRegisterOp::RegisterBuffersUpdate, &update) }
    }

    /// # Safety
    ///
    /// `argument` is what `op` takes by its size, and the pointers in it are as `op` wants them.
    unsafe fn call<T>(&self, op: IoringRegisterOp, argument: &T) -> Result<(), Errno> {
        retry_on_intr(|| {
            // SAFETY: by the caller's contract.
            unsafe {
                io_uring_register(
                    &self.fd,
                    op,
                    ptr::from_ref(argument).cast(),
                    size_of::<T>() as u32,
                )
            }
        })
        .map(|_| ())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Closing releases the pages, too, but some time later.
        // SAFETY: takes no argument; nobody else uses the ring.
        let _ = unsafe {
            io_uring_register(
                &self.fd,
                IoringRegisterOp::UnregisterBuffers,
                ptr::null(),
                0,
            )
        };
    }
}

/// Where making a ring failed, and with which number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RingError {
    Setup(Errno),
    Slots(Errno),
}
