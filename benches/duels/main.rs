//! Side by side: this pool, other pools on the same work, and the bare drivers.
//!
//! `cargo xtask bench` runs all of it and makes `benches/RESULTS.md` from it; `cargo bench --bench duels -- lease` one
//! part. As a test (`cargo test --bench duels`) each part runs for a moment, which shows that it works.

mod duel;
mod lease;
mod session;

use session::Session;

fn main() {
    let session = Session::from_args(std::env::args().skip(1));
    let parts: [(&str, fn(&Session)); 1] = [("lease", lease::run)];
    for (name, run) in parts {
        if session.wants(name) {
            run(&session);
        }
    }
}
