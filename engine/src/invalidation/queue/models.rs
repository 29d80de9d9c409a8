//! Every interleaving of two threads with lists, or of one and its hardware.
