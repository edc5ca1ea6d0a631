//! The binary: all of it is in the library, where tests reach it.

// a request makes and drops some fifty things of many sizes: a fifth of its time, with the C library's allocator
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    letta_gateway::cli::main()
}
