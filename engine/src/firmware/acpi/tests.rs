//! Tables together.
