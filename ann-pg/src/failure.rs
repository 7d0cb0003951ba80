//! The core's errors as Postgres reports them.

use std::io::{self, ErrorKind};

use ann_core::Error;
use pgrx::PgSqlErrorCode as Code;
use pgrx::{PgLogLevel, ereport};

/// The value, or an ERROR that ends the statement.
pub trait OrReport<T> {
    /// The value, or an ERROR that ends the statement.
    fn or_report(self) -> T;
}

impl<T> OrReport<T> for ann_core::Result<T> {
    fn or_report(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => report(&error),
        }
    }
}

/// Ends the statement.
pub fn report(error: &Error) -> ! {
    let code = match error {
        Error::Dimension { .. }
        | Error::NotFinite { .. }
        | Error::TooLong { .. }
        | Error::DoesNotFit { .. }
        | Error::ZeroVector { .. } => Code::ERRCODE_DATA_EXCEPTION,
        // Their number is never a user's: the system has no room for another stack.
        Error::Parameter { name: "threads", .. } => Code::ERRCODE_OUT_OF_MEMORY,
        Error::Parameter { .. } => Code::ERRCODE_INVALID_PARAMETER_VALUE,
        Error::Io { source, .. } => code_of(source),
        Error::Full { .. } => Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        Error::OutOfMemory { .. } => Code::ERRCODE_OUT_OF_MEMORY,
        Error::NotAnIndex { .. } | Error::Corrupt { .. } | Error::Kind { .. } => {
            Code::ERRCODE_INDEX_CORRUPTED
        }
        Error::Version { .. } => Code::ERRCODE_FEATURE_NOT_SUPPORTED,
        _ => Code::ERRCODE_INTERNAL_ERROR,
    };
    refuse(code, &error.to_string())
}

/// What Postgres calls an error of the system's.
pub fn code_of(error: &io::Error) -> Code {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Code::ERRCODE_DISK_FULL,
        _ => Code::ERRCODE_IO_ERROR,
    }
}

/// Ends the statement with a message of our own.
pub fn refuse(code: Code, message: &str) -> ! {
    ereport!(PgLogLevel::ERROR, code, message.to_owned());
    unreachable!("an ERROR does not return")
}
