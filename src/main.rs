//! The `hostel` command.

fn main() -> std::process::ExitCode {
    hostel::cli::main()
}
