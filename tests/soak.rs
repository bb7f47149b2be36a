//! Mixed load on all four backends at once, a fault every few seconds, for as many minutes as `SOAK_MINUTES` says.
//!
//! One thread per backend strikes faults. The threads share [`Tally`], whose two locks are never held at once, and the
//! atomic `over`, which ends them all.

#![allow(missing_docs)]

mod load;

use std::env;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use load::fault::{Fault, RESUME, Target, strike};
use load::meter::{Reading, is_measurable, settled};
use load::{Load, lock};
use services::Kind;

/// The pause between a worker's calls.
const PACE: Duration = Duration::from_millis(100);
/// How long a fault lasts, and the pause before the next one on the same backend, in milliseconds.
const LASTS: Range<u64> = 100..7000;
const PAUSE: Range<u64> = 500..8000;
/// How long the load runs before its descriptors, threads and memory are read.
const CALM: Duration = Duration::from_secs(5);

/// Pseudo-random numbers, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, range: Range<u64>) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        range.start + self.0 % (range.end - range.start)
    }

    fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.roll(range))
    }

    fn fault(&mut self, kind: Kind) -> Fault {
        loop {
            let lasts = self.millis(LASTS);
            let fault = match self.roll(0..7) {
                0 => Fault::Kill(lasts),
                1 => Fault::Freeze(lasts),
                2 => Fault::Reset(self.roll(1..8) as u32),
                3 => Fault::BlackHole(lasts),
                4 => Fault::Slow(lasts),
                5 => Fault::Collapse(lasts),
                _ => Fault::Alarm(lasts),
            };
            if fault.fits(kind) {
                return fault;
            }
        }
    }
}

/// The counts since the last line, except `faults`, which is the count of the whole run.
#[derive(Default)]
struct Tally {
    faults: AtomicUsize,
    calls: AtomicUsize,
    errors: AtomicUsize,
    /// The longest call since the last line.
    longest: Mutex<Duration>,
    slowest_return: Mutex<Duration>,
}

/// Ends all threads when the first one ends, also by a panic.
struct EndsAll<'a>(&'a AtomicBool);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn mongo_rabbitmq_clickhouse_redis_soak() {
    if !is_measurable("mongo_rabbitmq_clickhouse_redis_soak") {
        return;
    }
    let number = |name: &str, default| env::var(name).ok().map_or(default, |text| text.parse().expect("a number"));
    let (minutes, seed) = (number("SOAK_MINUTES", 1), number("SOAK_SEED", 0x5eed));
    let runtime = load::users_runtime();
    let targets: Vec<Target> = thread::scope(|scope| {
        let starting: Vec<_> = Kind::ALL.into_iter().map(|kind| scope.spawn(move || Target::start(kind))).collect();
        starting.into_iter().map(|thread| thread.join().expect("a server")).collect()
    });
    let backends = Kind::ALL.map(load::backend);
    let pool = load::pool(backends.iter().zip(&targets).map(|(backend, target)| backend.config(&target.url())));
    let loads = backends.map(|backend| Load::begin(backend, &pool, &runtime, PACE));
    thread::sleep(CALM);
    let ports: Vec<u16> = targets.iter().map(|target| target.proxy.port()).collect();
    let before = Reading::take(&ports);
    println!("seed {seed}; {before}");

    let (tally, over) = (Tally::default(), AtomicBool::new(false));
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    thread::scope(|scope| {
        for ((load, target), number) in loads.iter().zip(&targets).zip(1..) {
            let (tally, over) = (&tally, &over);
            let strike_on = move || {
                let _ends_all = EndsAll(over);
                let mut dice = Dice(seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number));
                while Instant::now() < end && !over.load(Ordering::SeqCst) {
                    let fault = dice.fault(load.shared.kind);
                    let row = strike(load, target, fault);
                    eprintln!("{row}");
                    tally.faults.fetch_add(1, Ordering::SeqCst);
                    tally.calls.fetch_add(row.calls, Ordering::SeqCst);
                    tally.errors.fetch_add(row.errors, Ordering::SeqCst);
                    let mut longest = lock(&tally.longest);
                    *longest = row.longest.max(*longest);
                    drop(longest);
                    let mut slowest = lock(&tally.slowest_return);
                    *slowest = row.resumed.max(*slowest);
                    drop(slowest);
                    thread::sleep(dice.millis(PAUSE));
                }
            };
            thread::Builder::new().name("load-faults".into()).spawn_scoped(scope, strike_on).expect("a thread");
        }
        let mut minute = 0;
        while Instant::now() < end && !over.load(Ordering::SeqCst) {
            let next = end.min(Instant::now() + Duration::from_secs(60));
            while Instant::now() < next && !over.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(50));
            }
            minute += 1;
            println!("minute {minute}: {}; {}", tally.line(), Reading::take(&ports));
        }
    });
    // From now on the load forgives no error, and none may come.
    thread::sleep(RESUME + Duration::from_secs(1));
    let after = settled("under load", &before, &ports);
    println!("after: {after}");
    let mut clean = true;
    for (load, target) in loads.into_iter().zip(&targets) {
        let kind = load.shared.kind;
        let audit = load.end(&target.server, &runtime);
        println!("{kind}: {audit}");
        clean &= audit.is_clean();
    }
    let report = runtime.block_on(pool.close_all());
    let closed = settled("closed", &before.closed(), &ports);
    println!("closed: {closed}");
    println!("{} faults; {}", tally.faults.load(Ordering::SeqCst), if clean { "clean" } else { "NOT CLEAN" });
    assert!(clean && report.all_closed(), "{report}");
}

impl Tally {
    /// The line for one minute. It counts the calls that were made around faults.
    fn line(&self) -> String {
        let Tally { faults, calls, errors, longest, slowest_return } = self;
        let (calls, errors) = (calls.swap(0, Ordering::SeqCst), errors.swap(0, Ordering::SeqCst));
        let longest = std::mem::take(&mut *lock(longest)).as_secs_f64();
        let slowest = std::mem::take(&mut *lock(slowest_return)).as_secs_f64();
        format!(
            "{calls} calls, {errors} errors, {} faults so far, longest call {longest:.2} s, slowest return {slowest:.2} s",
            faults.load(Ordering::SeqCst)
        )
    }
}
