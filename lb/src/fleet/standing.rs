//! Whether a node is given calls, and why.

/// Whether a node is given calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// Takes calls, unless it is ejected.
    Up,
    /// Finishes its calls and takes no more.
    Draining,
    /// Silent or unreachable for a short while: gets no calls, is not forgotten.
    Suspect,
    /// Silent for long: what was known of its containers is forgotten.
    Down,
}

impl NodeState {
    /// The state in a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// What a node's state follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Standing {
    /// It reports, or it was never expected to yet.
    Heard = 0,
    /// It reports that it takes no more calls.
    Draining = 1,
    /// It refused a call because it takes no more.
    RefusedDraining = 2,
    /// It missed its beats.
    Silent = 3,
    /// Its link broke.
    LinkLost = 4,
    /// A call could not reach it.
    Unreachable = 5,
    /// It has been silent for long.
    Gone = 6,
}

impl Standing {
    pub(crate) fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Heard,
            1 => Self::Draining,
            2 => Self::RefusedDraining,
            3 => Self::Silent,
            4 => Self::LinkLost,
            5 => Self::Unreachable,
            _ => Self::Gone,
        }
    }

    /// The state that follows.
    pub fn state(self) -> NodeState {
        match self {
            Self::Heard => NodeState::Up,
            Self::Draining | Self::RefusedDraining => NodeState::Draining,
            Self::Silent | Self::LinkLost | Self::Unreachable => NodeState::Suspect,
            Self::Gone => NodeState::Down,
        }
    }

    /// The reason in words, for operators.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Heard => "its agent is heard",
            Self::Draining => "its agent says that it drains",
            Self::RefusedDraining => "it refused a call because it drains",
            Self::Silent => "its agent missed its beats",
            Self::LinkLost => "its link broke",
            Self::Unreachable => "a call could not reach it",
            Self::Gone => "its agent has been silent for long",
        }
    }
}
