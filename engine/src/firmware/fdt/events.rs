//! The structure block, token by token (5.4).

use crate::firmware::fdt::{Block, FdtError, MAX_DEPTH};

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// A property of a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Property<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value.
    pub value: &'a [u8],
    /// Where the value is in the blob, in bytes.
    pub offset: usize,
}

/// What a walk comes by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event<'a> {
    /// A node of this name begins: a child of the one that began last and has not ended.
    Begin(&'a str),
    /// A property of the node that began last.
    Property(Property<'a>),
    /// The node that began last and has not ended ends.
    End,
}

/// A walk over a tree; what it yields is balanced: one root, and each node ends once.
#[derive(Clone, Debug)]
pub struct Events<'a> {
    structure: Block<'a>,
    strings: Block<'a>,
    at: usize,
    depth: usize,
    has_root: bool,
    /// Whether the node may still have properties: it has no child yet.
    is_open: bool,
    is_over: bool,
}

impl<'a> Events<'a> {
    pub(super) fn new(structure: Block<'a>, strings: Block<'a>) -> Self {
        Self {
            structure,
            strings,
            at: 0,
            depth: 0,
            has_root: false,
            is_open: false,
            is_over: false,
        }
    }

    fn step(&mut self) -> Result<Option<Event<'a>>, FdtError> {
        loop {
            let offset = self.structure.offset + self.at;
            let token = self.structure.word(self.at)?;
            self.at += 4;
            match token {
                NOP => {}
                BEGIN_NODE => return self.begin(offset).map(Some),
                PROPERTY => return self.property(offset).map(Some),
                END_NODE => {
                    let depth = self.depth.checked_sub(1);
                    self.depth = depth.ok_or(FdtError::Unbalanced { offset })?;
                    self.is_open = false;
                    return Ok(Some(Event::End));
                }
                END if self.depth != 0 => return Err(FdtError::Unbalanced { offset }),
                END if !self.has_root => return Err(FdtError::Root { offset }),
                END => return Ok(None),
                token => return Err(FdtError::Token { offset, token }),
            }
        }
    }

    fn begin(&mut self, offset: usize) -> Result<Event<'a>, FdtError> {
        if self.depth == 0 && self.has_root {
            return Err(FdtError::Root { offset });
        }
        if self.depth == MAX_DEPTH {
            return Err(FdtError::Depth { offset });
        }
        let name = self.structure.name(self.at)?;
        self.skip(name.len() + 1);
        self.depth += 1;
        (self.has_root, self.is_open) = (true, true);
        Ok(Event::Begin(name))
    }

    fn property(&mut self, offset: usize) -> Result<Event<'a>, FdtError> {
        if !self.is_open {
            return Err(FdtError::Property { offset });
        }
        let len = self.structure.size(self.at)?;
        let name_at = self.structure.size(self.at + 4)?;
        self.at += 8;
        let value = self.structure.bytes(self.at, len)?;
        let offset = self.structure.offset + self.at;
        self.skip(len);
        let name = self.strings.name(name_at)?;
        Ok(Event::Property(Property {
            name,
            value,
            offset,
        }))
    }

    /// Goes on behind `len` bytes that are there, at the next word.
    fn skip(&mut self, len: usize) {
        self.at = (self.at + len).next_multiple_of(4);
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, FdtError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let event = self.step().transpose();
        self.is_over = !matches!(event, Some(Ok(_)));
        event
    }
}
