//! How requests reach a device and come back.

/// The request queue of one device: a virtqueue, or what stands for it.
///
/// Calls come one at a time. None may block, nor call back into the engine.
pub trait Transport: Send {
    /// Returns how many requests may be under way at a time: at least one, always the same.
    fn capacity(&self) -> usize;

    /// Puts a request in front of the device, which need not look before the next [`kick`](Self::kick):
    /// `request` is what it reads, `written_len` the number of bytes that it may write. Fewer than
    /// [`capacity`](Self::capacity) requests are under way. A request that cannot be sent is answered
    /// with no bytes.
    fn send(&mut self, tag: u64, request: &[u8], written_len: usize);

    /// Tells the device that there are requests.
    fn kick(&mut self);

    /// Takes an answer from the device, in whatever order they come, and hands over the tag of its request
    /// with the bytes that were written, as many as the device says it used. Returns false if there is no
    /// answer at this moment.
    fn collect(&mut self, answer: &mut dyn FnMut(u64, &[u8])) -> bool;

    /// Writes `bypass` in the configuration space, with the feature `BYPASS_CONFIG` only: whether endpoints
    /// without a domain are not translated, rather than blocked. Returns whether it reads so afterwards; by
    /// default it cannot be written.
    fn write_bypass(&mut self, is_bypass: bool) -> bool {
        let _ = is_bypass;
        false
    }
}
