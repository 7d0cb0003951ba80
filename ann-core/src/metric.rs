//! Metrics: what "near" means.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// How two vectors are compared. Smaller is nearer for all of them, in results and in radii.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Metric {
    /// Squared Euclidean distance, `|a - b|^2`.
    L2sq = 1,
    /// Negated inner product, `-a.b`.
    InnerProduct = 2,
    /// Cosine distance, `1 - a.b / (|a| |b|)`, from 0 to 2.
    Cosine = 3,
}

impl Metric {
    /// The metric that a meta page names by `code`, if there is one.
    pub(crate) const fn from_code(code: u8) -> Option<Metric> {
        match code {
            1 => Some(Metric::L2sq),
            2 => Some(Metric::InnerProduct),
            3 => Some(Metric::Cosine),
            _ => None,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Metric::L2sq => "l2sq",
            Metric::InnerProduct => "ip",
            Metric::Cosine => "cosine",
        })
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(name: &str) -> Result<Metric> {
        match name {
            "l2sq" => Ok(Metric::L2sq),
            "ip" => Ok(Metric::InnerProduct),
            "cosine" => Ok(Metric::Cosine),
            _ => Err(Error::parameter("metric", name, "one of l2sq, ip, cosine")),
        }
    }
}
