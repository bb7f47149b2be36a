//! The verbs that ask a running pool: `status`, `holders`, `events` and `watch`.

#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::admin::{Admin, TOKEN};
use common::terminal::Terminal;
use common::{BINARY, LONG, Ran, command, folder, run, until};
use resource_pool::config::RedisConfig;
use resource_pool::{Redis, ResourcePool};
use services::{Kind, Service};

/// A Redis, and a pool that uses it.
fn running() -> (Service, Admin, Redis) {
    let service = Service::start(Kind::Redis).unwrap();
    let pool = ResourcePool::builder().environment([("", ""); 0]).resource(RedisConfig::url(service.url()));
    let admin = Admin::of(pool.build().unwrap());
    let redis = admin.runtime.block_on(admin.pool.redis()).unwrap();
    let redis = Redis::clone(&redis);
    (service, admin, redis)
}

fn ask(admin: &Admin, arguments: &[&str]) -> Ran {
    let ran = run(arguments, &[("RESOURCE_POOL_ADMIN", &admin.address), ("RESOURCE_POOL_ADMIN_TOKEN", TOKEN)]);
    assert!(!format!("{ran:?}").contains(TOKEN) && !ran.out.contains('\x1b'), "{ran:?}");
    ran
}

/// The row of this resource.
#[track_caller]
fn row<'a>(out: &'a str, name: &str) -> &'a str {
    out.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {out}"))
}

#[test]
fn status_and_holders_tell_of_the_running_pool() {
    let (service, admin, _redis) = running();
    let lease = admin.runtime.block_on(admin.pool.redis()).unwrap();
    let line = line!() - 1;
    // A report of health is answered again for a second.
    until(|| row(&ask(&admin, &["status"]).out, "redis").contains("pass"));
    let ran = ask(&admin, &["status"]);
    assert_eq!((ran.code, &*ran.err), (0, ""), "{ran:?}");
    let redis = row(&ran.out, "redis");
    assert!(
        redis.contains("ready") && redis.contains("pass") && redis.contains(&service.port().to_string()),
        "{redis}"
    );
    assert!(!ran.out.contains(service.password()), "{ran:?}");
    assert!(ran.out.ends_with("readiness: pass\n"), "{ran:?}");
    let json = ask(&admin, &["status", "--json"]).json();
    assert_eq!((&json["closing"], &json["readiness"]), (&false.into(), &"pass".into()), "{json}");
    let ran = ask(&admin, &["holders"]);
    let site = format!("{}:{line}", file!());
    assert!(ran.out.lines().any(|line| line.starts_with("redis") && line.contains(&site)), "{site}: {ran:?}");
    let json = ask(&admin, &["holders", "--json"]).json();
    assert_eq!(json[0]["resource"], "redis");
    drop(lease);
    service.kill().unwrap();
    until(|| ask(&admin, &["status"]).code == 1);
    let ran = ask(&admin, &["status"]);
    assert!(row(&ran.out, "redis").contains("broken") && ran.out.contains("readiness: fail"), "{ran:?}");
    service.restart().unwrap();
    until(|| ask(&admin, &["status"]).code == 0);
}

#[test]
fn an_admin_that_refuses_or_is_not_there_is_an_error_with_its_remedy() {
    let (_service, admin, _redis) = running();
    let wrong = "wr0ng-t0ken";
    for (variables, remedy) in [
        (&[("RESOURCE_POOL_ADMIN", &*admin.address)][..], "RESOURCE_POOL_ADMIN_TOKEN"),
        (&[("RESOURCE_POOL_ADMIN", &admin.address), ("RESOURCE_POOL_ADMIN_TOKEN", wrong)], "RESOURCE_POOL_ADMIN_TOKEN"),
        (&[("RESOURCE_POOL_ADMIN", "http://127.0.0.1:3")], "feature `admin`"),
    ] {
        for verb in [&["status"][..], &["holders"], &["events"], &["events", "--follow"]] {
            let ran = run(verb, variables);
            let (_, told) = ran.two_lines();
            assert!(ran.code == 1 && told.contains(remedy), "{ran:?}");
            assert!(!format!("{ran:?}").contains(wrong), "{ran:?}");
        }
    }
    // A Redis is no admin.
    let ran = run(&["status", "--admin", &format!("http://127.0.0.1:{}", _service.port())], &[]);
    let (problem, _) = ran.two_lines();
    assert!(ran.code == 1 && problem.contains("no admin"), "{ran:?}");
    let file = folder().join("token");
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let file = file.to_str().unwrap();
    let ran = run(&["status", "--admin", &admin.address, "--token-file", file], &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = run(&["status", "--admin", &admin.address], &[("RESOURCE_POOL_ADMIN_TOKEN_FILE", file)]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn events_are_told_as_they_come_until_the_pool_closes() {
    let (service, admin, _redis) = running();
    until(|| ask(&admin, &["events"]).out.contains("connected"));
    let ran = ask(&admin, &["events", "--last", "2", "--json"]);
    let events: Vec<serde_json::Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.len() == 2 && events.iter().all(|event| event["what"].is_string()), "{ran:?}");
    let variables = [("RESOURCE_POOL_ADMIN", &*admin.address), ("RESOURCE_POOL_ADMIN_TOKEN", TOKEN)];
    let mut following = command(&["events", "--follow"], &variables).stdout(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = mpsc::channel();
    let out = BufReader::new(following.stdout.take().unwrap());
    thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let told = |words: &[&str]| {
        let found = std::iter::from_fn(|| lines.recv_timeout(LONG).ok());
        let found = { found }.find(|line| words.iter().all(|word| line.contains(word)));
        assert!(found.is_some(), "no {words:?}");
    };
    told(&["redis", "connected"]);
    service.kill().unwrap();
    told(&["redis", "lost"]);
    service.restart().unwrap();
    told(&["redis", "connected"]);
    let report = admin.runtime.block_on(admin.pool.close_all());
    assert!(report.all_closed());
    told(&["pool", "closed"]);
    until(|| following.try_wait().unwrap().is_some());
    assert!(following.wait().unwrap().success());
}

/// The variables of a terminal whose commands ask this admin.
fn variables(admin: &Admin) -> [(&str, &str); 3] {
    [("RESOURCE_POOL_ADMIN", &admin.address), ("RESOURCE_POOL_ADMIN_TOKEN", TOKEN), ("TERM", "screen-256color")]
}

/// Waits until the screen has these words.
#[track_caller]
fn shown(terminal: &Terminal, words: &str) {
    let started = Instant::now();
    while !terminal.text().contains(words) {
        assert!(started.elapsed() < LONG, "no {words:?}:\n{}", terminal.text());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Asserts that the whole screen is drawn: header and footer at the edges, and no line wider than the terminal.
#[track_caller]
fn is_whole(terminal: &Terminal, width: usize, height: usize) {
    until(|| {
        let screen = terminal.screen();
        screen.len() == height && screen[0].starts_with(" resource-pool ") && screen[height - 1].contains("q quit")
    });
    for line in terminal.screen() {
        assert!(line.chars().count() <= width, "{} columns: {line}", line.chars().count());
    }
}

#[test]
fn watch_shows_a_redis_that_dies_and_returns() {
    let (service, admin, _redis) = running();
    let _lease = admin.runtime.block_on(admin.pool.redis()).unwrap();
    for (width, height) in [(80, 24), (200, 60)] {
        let terminal = Terminal::open(width, height, &variables(&admin));
        terminal.enter(&format!("{BINARY} watch"));
        shown(&terminal, "  ready");
        is_whole(&terminal, width.into(), height.into());
        let screen = terminal.text();
        assert!(screen.contains(&format!("127.0.0.1:{}", service.port())) && screen.contains("running.rs"), "{screen}");
        assert!(!screen.contains(service.password()) && !screen.contains(TOKEN), "{screen}");
        service.kill().unwrap();
        let killed = Instant::now();
        shown(&terminal, "lost");
        shown(&terminal, "NOT READY");
        shown(&terminal, "broken");
        shown(&terminal, "Connection refused");
        assert!(killed.elapsed() < LONG, "a person finds it within a minute");
        is_whole(&terminal, width.into(), height.into());
        service.restart().unwrap();
        until(|| terminal.screen()[0].ends_with("  ready"));
        shown(&terminal, "connected");
        is_whole(&terminal, width.into(), height.into());
    }
}

#[test]
fn watch_obeys_its_keys_and_fits_a_terminal_that_changes_its_size() {
    let (_service, admin, _redis) = running();
    let terminal = Terminal::open(80, 24, &variables(&admin));
    terminal.enter(&format!("{BINARY} watch"));
    shown(&terminal, "  ready");
    for (width, height) in [(200, 60), (80, 24), (40, 10), (120, 30)] {
        terminal.resize(width, height);
        if width >= 80 {
            is_whole(&terminal, width.into(), height.into());
        } else {
            until(|| {
                terminal.screen().len() == usize::from(height) && terminal.screen()[0].starts_with(" resource-pool")
            });
        }
    }
    // The one that is used is chosen at first.
    shown(&terminal, " redis ─");
    terminal.keys(&["Home"]);
    // The chosen resource is the one whose panel is shown. The features decide which kinds there are.
    let names: Vec<String> = admin.pool.status().resources.iter().map(|one| format!(" {} ─", one.name)).collect();
    shown(&terminal, &names[0]);
    terminal.keys(&["Down"]);
    shown(&terminal, &names[1]);
    terminal.keys(&["Up"]);
    shown(&terminal, &names[0]);
    terminal.keys(&["End"]);
    shown(&terminal, names.last().unwrap());
    terminal.keys(&["?"]);
    shown(&terminal, "choose a resource");
    terminal.keys(&["?"]);
    until(|| !terminal.text().contains("choose a resource"));
    terminal.keys(&["/"]);
    terminal.keys(&["-l", "redis"]);
    shown(&terminal, "/redis");
    terminal.keys(&["Enter"]);
    shown(&terminal, " redis ─");
    until(|| !terminal.text().contains("clickhouse") && !terminal.text().contains("mongo"));
    terminal.keys(&["Escape"]);
    shown(&terminal, "clickhouse");
    is_whole(&terminal, 120, 30);
}

#[test]
fn watch_gives_the_terminal_back() {
    let (_service, admin, _redis) = running();
    let folder = folder();
    let terminal = Terminal::open(80, 24, &variables(&admin));
    let (was, is, number) = (folder.join("was"), folder.join("is"), folder.join("number"));
    terminal.enter(&format!("stty -g > {}", was.display()));
    until(|| fs::read_to_string(&was).is_ok_and(|was| !was.is_empty()));
    for (ends_by, code) in [("q", 0), ("TERM", 143), ("HUP", 129), ("INT", 130), ("^C", 0)] {
        let _ = fs::remove_file(&number);
        terminal.enter("clear; echo be''fore");
        shown(&terminal, "before");
        terminal.enter(&format!("sh -c 'echo $$ > {}; exec {BINARY} watch'; echo code=$?-{ends_by}", number.display()));
        shown(&terminal, "events, the newest first");
        match ends_by {
            "q" => terminal.keys(&["q"]),
            "^C" => terminal.keys(&["C-c"]),
            signal => {
                let process = fs::read_to_string(&number).unwrap();
                assert!(Command::new("kill").args([&format!("-{signal}"), process.trim()]).status().unwrap().success());
            }
        }
        shown(&terminal, &format!("code={code}-{ends_by}"));
        let screen = terminal.text();
        assert!(screen.contains("before") && !screen.contains("events, the newest first"), "{screen}");
        let _ = fs::remove_file(&is);
        terminal.enter(&format!("stty -g > {}", is.display()));
        until(|| fs::read_to_string(&is).is_ok_and(|is| !is.is_empty()));
        assert_eq!(fs::read_to_string(&was).unwrap(), fs::read_to_string(&is).unwrap(), "after {ends_by}");
    }
}

#[test]
fn watch_shows_the_report_of_closing_as_it_grows() {
    let (_service, admin, redis) = running();
    drop(redis);
    let terminal = Terminal::open(100, 30, &variables(&admin));
    terminal.enter(&format!("{BINARY} watch"));
    shown(&terminal, "  ready");
    let report = admin.runtime.block_on(admin.pool.close_all());
    assert!(report.all_closed());
    shown(&terminal, " closed in ");
    let screen = terminal.screen();
    assert!(screen.iter().any(|line| line.starts_with("redis") && line.ends_with("closed")), "{screen:#?}");
}

#[test]
fn colours_are_for_terminals_and_not_where_they_are_unwanted() {
    let (_service, admin, _redis) = running();
    for (unwanted, has_colours) in [("", true), ("NO_COLOR=1 ", false), ("TERM=dumb ", false)] {
        let terminal = Terminal::open(160, 24, &variables(&admin));
        terminal.enter(&format!("{unwanted}{BINARY} status; echo do''ne"));
        shown(&terminal, "done");
        assert!(terminal.text().contains("readiness: pass"), "{}", terminal.text());
        assert_eq!(terminal.colours().contains("\x1b[32m"), has_colours, "{unwanted}: {:?}", terminal.colours());
    }
    let terminal = Terminal::open(100, 24, &variables(&admin));
    terminal.enter(&format!("NO_COLOR=1 {BINARY} watch"));
    shown(&terminal, "  ready");
    assert!(!terminal.colours().contains("\x1b[32m"), "{:?}", terminal.colours());
}
