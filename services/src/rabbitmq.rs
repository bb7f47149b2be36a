//! RabbitMQ: its configuration, and the view of its server side.

use crate::address::{Address, encode};
use crate::process::{self, Process};
use crate::server::{Server, Site};
use crate::{Error, Kind, Service, install, port};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

const USER: &str = "quant@desk:a/b%c";
const PASSWORD: &str = "p@ss:w/rd%2F";
/// The virtual host in the URL. The virtual host `/` exists too, for the same user.
const VHOST: &str = "desk@a:b/c%2F";

const NODE: &str = "pool@localhost";
const COOKIE: &str = "resource-pool";
const EPMD_PORT_FILE: &str = "epmd.port";

#[derive(Debug, Default)]
pub(crate) struct RabbitMq {
    /// Erlang's name server. Erlang would start one as a daemon that outlives this process, so each broker gets its
    /// own.
    epmd: Option<Process>,
    distribution_port: u16,
}

impl Server for RabbitMq {
    fn address(&self, port: u16) -> Address {
        Address {
            url: format!("amqp://{}:{}@127.0.0.1:{port}/{}", encode(USER), encode(PASSWORD), encode(VHOST)),
            host: "127.0.0.1".into(),
            port,
            user: USER.into(),
            password: PASSWORD.into(),
            path: VHOST.into(),
        }
    }

    fn prepare(&mut self, site: &Site) -> Result<(), Error> {
        let dir = site.dir.display();
        let mut config = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nload_definitions = {dir}/definitions.json\n\
             log.dir = {dir}\nlog.file = server.log\nlog.file.level = info\nlog.console = false\n\
             disk_free_limit.absolute = 1MB\nraft.wal_max_size_bytes = 1048576\n",
            port = site.address.port,
        );
        if let Some(tls) = &site.tls {
            let certificate = tls.certificate();
            let verify = if tls.tls.asks_for_certificate { "verify_peer" } else { "verify_none" };
            config.push_str(&format!(
                "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {authority}\n\
                 ssl_options.certfile = {certificate}\nssl_options.keyfile = {certificate}\n\
                 ssl_options.verify = {verify}\nssl_options.fail_if_no_peer_cert = {asks}\n",
                port = tls.port,
                authority = tls.authority().display(),
                certificate = certificate.display(),
                asks = tls.tls.asks_for_certificate,
            ));
        }
        let permission =
            |vhost: &str| format!(r#"{{"user":"{USER}","vhost":"{vhost}","configure":".*","write":".*","read":".*"}}"#);
        let definitions = format!(
            r#"{{"users":[{{"name":"{USER}","password":"{PASSWORD}","tags":["administrator"]}}],
"vhosts":[{{"name":"/"}},{{"name":"{VHOST}"}}],"permissions":[{},{}]}}"#,
            permission("/"),
            permission(VHOST),
        );
        let epmd_port = port::free()?;
        let write = |name: &str, text: &str| {
            let path = site.dir.join(name);
            fs::write(&path, text).map_err(Error::io(path.to_string_lossy()))
        };
        write("rabbitmq.conf", &config)?;
        write("definitions.json", &definitions)?;
        write(EPMD_PORT_FILE, &epmd_port.to_string())?;
        write(".erlang.cookie", COOKIE)?;
        let cookie = site.dir.join(".erlang.cookie");
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400)).map_err(Error::io(cookie.to_string_lossy()))?;

        let mut epmd = process::command(install::EPMD.path()?, &site.dir);
        epmd.envs(environment(&site.dir)).arg("-port").arg(epmd_port.to_string());
        self.epmd = Some(Process::spawn(epmd, &site.dir.join("epmd.out"))?);
        self.distribution_port = port::free()?;
        Ok(())
    }

    fn command(&self, site: &Site) -> Result<Command, Error> {
        // Erlang hands every file operation to another thread. On a virtual machine, waking that thread on another
        // processor costs more than the operation, and a start has a hundred thousand of them. On one processor the
        // broker starts in a third of the time.
        let mut command = process::command("taskset", &site.dir);
        command.arg("--cpu-list").arg(processor(site.address.port)).arg(install::RABBITMQ.path()?);
        command.envs(environment(&site.dir)).env("RABBITMQ_DIST_PORT", self.distribution_port.to_string());
        let erlang = "+S 1:1 +SDcpu 1:1 +SDio 1 +A 1 -start_epmd false -kernel inet_dist_use_interface {127,0,0,1}";
        command.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", erlang);
        // With this variable the script becomes the broker, instead of staying as its parent.
        command.env("RUNNING_UNDER_SYSTEMD", "true");
        Ok(command)
    }

    fn ready(&self, site: &Site) -> Result<(), Error> {
        handshake(&site.address).map_err(Error::io("AMQP handshake"))
    }
}

/// The settings that the broker and its tools share. They keep both from reading `/etc/rabbitmq`.
fn environment(dir: &Path) -> Vec<(&'static str, OsString)> {
    let epmd_port = fs::read_to_string(dir.join(EPMD_PORT_FILE)).unwrap_or_default();
    vec![
        ("HOSTNAME", "localhost".into()),
        ("RABBITMQ_NODENAME", NODE.into()),
        ("RABBITMQ_CONF_ENV_FILE", dir.join("none").into()),
        ("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf").into()),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", dir.join("advanced.config").into()),
        ("RABBITMQ_MNESIA_BASE", dir.join("data").into()),
        ("RABBITMQ_LOG_BASE", dir.into()),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("enabled_plugins").into()),
        ("RABBITMQ_PID_FILE", dir.join("broker.pid").into()),
        ("ERL_EPMD_PORT", epmd_port.into()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        ("ERL_CRASH_DUMP_SECONDS", "0".into()),
    ]
}

/// One of the processors that this process may use. The next broker gets another one.
fn processor(seed: u16) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("0").trim();
    let allowed: Vec<u32> = list
        .split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect();
    allowed.get(usize::from(seed) % allowed.len().max(1)).unwrap_or(&0).to_string()
}

/// Logs in, opens the virtual host and closes again, as a client does.
fn handshake(address: &Address) -> io::Result<()> {
    const START: [u8; 4] = [0, 10, 0, 10];
    const TUNE: [u8; 4] = [0, 10, 0, 30];
    const OPEN_OK: [u8; 4] = [0, 10, 0, 41];
    const CLOSE_OK: [u8; 4] = [0, 10, 0, 51];
    let mut stream = TcpStream::connect((address.host.as_str(), address.port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"AMQP\x00\x00\x09\x01")?;
    expect(&mut stream, START)?;

    let login = format!("\0{}\0{}", address.user, address.password);
    let mut start_ok = vec![0, 10, 0, 11];
    start_ok.extend([0; 4]); // no client properties
    start_ok.extend(short(b"PLAIN"));
    start_ok.extend(u32::try_from(login.len()).map_err(io::Error::other)?.to_be_bytes());
    start_ok.extend(login.as_bytes());
    start_ok.extend(short(b"en_US"));
    send(&mut stream, &start_ok)?;
    let tune = expect(&mut stream, TUNE)?;

    let mut tune_ok = vec![0, 10, 0, 31];
    tune_ok.extend(tune.get(4..12).ok_or(io::ErrorKind::InvalidData)?);
    send(&mut stream, &tune_ok)?;
    let mut open = vec![0, 10, 0, 40];
    open.extend(short(address.path.as_bytes()));
    open.extend([0, 0]);
    send(&mut stream, &open)?;
    expect(&mut stream, OPEN_OK)?;

    send(&mut stream, &[0, 10, 0, 50, 0, 200, 0, 0, 0, 0, 0])?;
    expect(&mut stream, CLOSE_OK)?;
    // This waits until the broker has closed too, even by a reset, so that the caller finds no connection.
    stream.shutdown(Shutdown::Write)?;
    let _ = stream.read(&mut [0]);
    Ok(())
}

fn short(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[length], &text[..usize::from(length)]].concat()
}

fn send(stream: &mut TcpStream, method: &[u8]) -> io::Result<()> {
    let length = u32::try_from(method.len()).map_err(io::Error::other)?;
    stream.write_all(&[&[1, 0, 0], &length.to_be_bytes()[..], method, &[0xCE]].concat())
}

fn expect(stream: &mut TcpStream, method: [u8; 4]) -> io::Result<Vec<u8>> {
    let mut head = [0; 7];
    stream.read_exact(&mut head)?;
    let mut payload = vec![0; u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize + 1];
    stream.read_exact(&mut payload)?;
    payload.pop();
    match payload.starts_with(&method) {
        true => Ok(payload),
        false => Err(io::Error::other(format!("unexpected: {}", String::from_utf8_lossy(&payload).escape_debug()))),
    }
}

impl Service {
    /// The view of a RabbitMQ's server side.
    ///
    /// # Errors
    /// If this is not a RabbitMQ, or only its URL is known.
    pub fn rabbitmq(&self) -> Result<View<'_>, Error> {
        let site = self.site(Kind::RabbitMq)?;
        self.need_dir("look into")?;
        Ok(View { service: self, dir: &site.dir })
    }
}

/// The server side of a RabbitMQ, asked over Erlang's own protocol, which takes milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    service: &'a Service,
    dir: &'a Path,
}

/// A client connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Both ends: `127.0.0.1:40000 -> 127.0.0.1:5672`.
    pub name: String,
    /// The state: `running`, `blocked`, `blocking`, `closing`, …
    pub state: String,
    /// The virtual host.
    pub vhost: String,
    /// The number of open channels.
    pub channels: usize,
    /// The name that the client gave itself, or nothing.
    pub client_name: String,
}

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// The number of messages that wait for a consumer.
    pub ready: usize,
    /// The number of messages delivered and not acknowledged.
    pub unacked: usize,
    /// The number of consumers.
    pub consumers: usize,
}

impl View<'_> {
    /// Evaluates Erlang inside the broker and returns what it printed.
    ///
    /// # Errors
    /// If the broker does not answer (a frozen one does not) or the expression fails.
    pub fn eval(&self, expression: &str) -> Result<String, Error> {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let what = "asking RabbitMQ";
        // The broker refuses a second caller of the same name, even if the first is dead. Relaxed suffices, since the
        // numbers only have to differ.
        let caller = format!("call{}x{}", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed));
        let mut call = process::command(install::ERL_CALL.path()?, self.dir);
        call.args(["-h", &caller, "-c", COOKIE, "-n", NODE, "-timeout", "5", "-fetch_stdout", "-no_result_term", "-e"]);
        call.envs(environment(self.dir)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = call.spawn().map_err(Error::io(what))?;
        let sent = child.stdin.take().map(|mut stdin| stdin.write_all(format!("{expression}.\n").as_bytes()));
        let output = child.wait_with_output().map_err(Error::io(what))?;
        match (output.status.success(), sent) {
            (true, Some(Ok(()))) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            _ => {
                let said = [output.stdout, output.stderr].concat();
                Err(Error::exchange(what, String::from_utf8_lossy(&said).trim()))
            }
        }
    }

    /// Runs `rabbitmqctl`, which takes about a second, and returns what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, Error> {
        let what = format!("rabbitmqctl {}", arguments.join(" "));
        let mut ctl = process::command(install::RABBITMQCTL.path()?, self.dir);
        ctl.args(arguments).arg("--quiet").envs(environment(self.dir));
        ctl.env("RABBITMQ_CTL_ERL_ARGS", "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}");
        let output = ctl.output().map_err(Error::io(what.clone()))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(Error::exchange(what, String::from_utf8_lossy(&output.stderr).trim())),
        }
    }

    /// The client connections.
    ///
    /// # Errors
    /// As [`eval`](View::eval).
    pub fn connections(&self) -> Result<Vec<Connection>, Error> {
        let rows = self.eval(
            r#"[io:format("~ts\t~w\t~ts\t~w\t~ts~n", [proplists:get_value(K, I) || K <- [name, state, vhost, channels]] ++
                [[N || {<<"connection_name">>, _, N} <- proplists:get_value(client_properties, I)]]) ||
                I <- rabbit_networking:connection_info_all([name, state, vhost, channels, client_properties])]"#,
        )?;
        let parse = |row: &str| {
            let mut fields = row.split('\t').map(String::from);
            let mut next = || fields.next().unwrap_or_default();
            Connection {
                name: next(),
                state: next(),
                vhost: next(),
                channels: next().parse().unwrap_or(0),
                client_name: next(),
            }
        };
        Ok(rows.lines().filter(|row| row.contains('\t')).map(parse).collect())
    }

    /// The queues of a virtual host.
    ///
    /// # Errors
    /// As [`eval`](View::eval).
    pub fn queues(&self, vhost: &str) -> Result<Vec<Queue>, Error> {
        let vhost = erlang_binary(vhost);
        let rows = self.eval(&format!(
            r#"[io:format("~ts\t~w\t~w\t~w~n", [element(4, proplists:get_value(name, I)) | [proplists:get_value(K, I) ||
                K <- [messages_ready, messages_unacknowledged, consumers]]]) ||
                I <- rabbit_amqqueue:info_all({vhost}, [name, messages_ready, messages_unacknowledged, consumers])]"#
        ))?;
        let parse = |row: &str| {
            let mut fields = row.rsplit('\t');
            let mut next = || fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
            let (consumers, unacked, ready) = (next(), next(), next());
            Queue { name: fields.next().unwrap_or_default().into(), ready, unacked, consumers }
        };
        Ok(rows.lines().filter(|row| row.contains('\t')).map(parse).collect())
    }

    /// The number of open channels of all connections.
    ///
    /// # Errors
    /// As [`eval`](View::eval).
    pub fn channels(&self) -> Result<usize, Error> {
        Ok(self.connections()?.iter().map(|connection| connection.channels).sum())
    }

    /// Raises the memory alarm, which stops the broker from reading from publishers, or clears it. Returns when the
    /// alarm has changed.
    ///
    /// # Errors
    /// As [`eval`](View::eval), and if the alarm does not change within five seconds.
    pub fn memory_alarm(&self, raised: bool) -> Result<(), Error> {
        let mark = if raised { "0.000001" } else { "0.4" };
        self.eval(&format!("vm_memory_monitor:set_vm_memory_high_watermark({mark})"))?;
        self.await_alarm("memory", raised)
    }

    /// Raises the disk alarm, which stops the broker from reading from publishers, or clears it. Returns when the alarm
    /// has changed.
    ///
    /// # Errors
    /// As [`memory_alarm`](View::memory_alarm).
    pub fn disk_alarm(&self, raised: bool) -> Result<(), Error> {
        let bytes = if raised { "1000000000000000" } else { "1000000" };
        self.eval(&format!("rabbit_disk_monitor:set_disk_free_limit({bytes})"))?;
        self.await_alarm("disk", raised)
    }

    fn await_alarm(&self, what: &str, raised: bool) -> Result<(), Error> {
        for _ in 0..100 {
            let alarms = self.eval(r#"io:format("~w", [rabbit_alarm:get_alarms()])"#)?;
            if alarms.contains(what) == raised {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(Error::exchange(format!("RabbitMQ's {what} alarm"), "it did not change"))
    }

    /// Makes the virtual host that the URL names refuse further connections, or accept them again. Open connections
    /// stay.
    ///
    /// # Errors
    /// As [`eval`](View::eval).
    pub fn full(&self, is_full: bool) -> Result<(), Error> {
        let vhost = erlang_binary(self.service.database());
        let order = match is_full {
            true => format!("ok = rabbit_vhost_limit:set({vhost}, [{{<<\"max-connections\">>, 0}}], <<\"tests\">>)"),
            false => format!("ok = rabbit_vhost_limit:clear({vhost}, <<\"tests\">>)"),
        };
        self.eval(&order).map(drop)
    }

    /// Takes all rights in the virtual host that the URL names from the broker's user, or gives them back.
    ///
    /// # Errors
    /// As [`eval`](View::eval).
    pub fn rights(&self, given: bool) -> Result<(), Error> {
        let (user, vhost) = (erlang_binary(self.service.user()), erlang_binary(self.service.database()));
        let all = r#"<<".*">>, <<".*">>, <<".*">>"#;
        let order = match given {
            true => format!("rabbit_auth_backend_internal:set_permissions({user}, {vhost}, {all}, <<\"tests\">>)"),
            false => format!("rabbit_auth_backend_internal:clear_permissions({user}, {vhost}, <<\"tests\">>)"),
        };
        self.eval(&order).map(drop)
    }

    /// The broker's complaints about connections that did not end with a `Connection.Close`, as whole log entries.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn unclean_closes(&self) -> Result<Vec<String>, Error> {
        let log = self.service.log()?;
        let complaint = |entry: &String| {
            ["[warning]", "[error]"].iter().any(|level| entry.contains(level))
                && ["closing AMQP connection", "client unexpectedly closed"].iter().any(|text| entry.contains(text))
        };
        Ok(entries(&log).into_iter().filter(complaint).collect())
    }
}

/// Joins the lines of each log entry. Every line repeats the entry's time, level and process.
fn entries(log: &str) -> Vec<String> {
    let mut entries: Vec<(&str, String)> = Vec::new();
    for line in log.lines() {
        let (head, text) = line.find("> ").map_or((line, ""), |end| line.split_at(end + 2));
        match entries.last_mut() {
            Some((last, entry)) if *last == head => *entry = format!("{entry}\n{text}"),
            _ => entries.push((head, line.to_string())),
        }
    }
    entries.into_iter().map(|(_, entry)| entry).collect()
}

fn erlang_binary(text: &str) -> String {
    let bytes: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
    format!("<<{}>>", bytes.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Proxy;

    #[test]
    fn a_proxy_writes_down_what_is_said() {
        let service = Service::start(Kind::RabbitMq).unwrap();
        let proxy = Proxy::start(service.port()).unwrap();
        let address = Address::parse(Kind::RabbitMq, &proxy.url(&service)).unwrap();
        assert_eq!((address.port, address.path.as_str()), (proxy.port(), VHOST));
        handshake(&address).unwrap();
        let frames = proxy.frames();
        let said: Vec<_> = frames.iter().map(|frame| (frame.from_client, frame.name.as_str())).collect();
        let expected = [
            (false, "Connection.Start"),
            (true, "Connection.StartOk"),
            (false, "Connection.Tune"),
            (true, "Connection.TuneOk"),
            (true, "Connection.Open"),
            (false, "Connection.OpenOk"),
            (true, "Connection.Close"),
            (false, "Connection.CloseOk"),
        ];
        assert_eq!(said, expected);
        assert_eq!(service.rabbitmq().unwrap().unclean_closes().unwrap(), [""; 0]);
    }
}
