//! The examples run as they stand.

#[path = "../examples/continued.rs"]
mod continued;
#[path = "../examples/filtered.rs"]
mod filtered;
#[path = "../examples/quickstart.rs"]
mod quickstart;

#[test]
fn continued() {
    continued::main().unwrap();
}

#[test]
fn filtered() {
    filtered::main().unwrap();
}

#[test]
fn quickstart() {
    quickstart::main().unwrap();
}
