//! MongoDB: its configuration, and the view of its server side.

use crate::address::{Address, encode};
use crate::process;
use crate::server::{Server, Site};
use crate::{Error, Kind, Service, install};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

const USER: &str = "quant@desk:a/b%c";
const PASSWORD: &str = "p@ss:w/rd%2F";
const REPLICA_SET: &str = "rs0";

#[derive(Debug, Default)]
pub(crate) struct Mongo;

impl Server for Mongo {
    fn address(&self, port: u16) -> Address {
        let login = format!("{}:{}", encode(USER), encode(PASSWORD));
        Address {
            url: format!("mongodb://{login}@127.0.0.1:{port}/?replicaSet={REPLICA_SET}&authSource=admin"),
            host: "127.0.0.1".into(),
            port,
            user: USER.into(),
            password: PASSWORD.into(),
            path: String::new(),
        }
    }

    fn prepare(&mut self, site: &Site) -> Result<(), Error> {
        let key = site.dir.join("key");
        let write = || {
            fs::create_dir_all(site.dir.join("data"))?;
            // The members of a replica set share this key. This set has only one member.
            fs::write(&key, "resourcepool")?;
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600))
        };
        write().map_err(Error::io(key.to_string_lossy()))
    }

    fn command(&self, site: &Site) -> Result<Command, Error> {
        let mut command = process::command(install::MONGOD.path()?, &site.dir);
        command.args(["--bind_ip", "127.0.0.1", "--port"]).arg(site.address.port.to_string());
        command.args(["--replSet", REPLICA_SET, "--keyFile", "key", "--dbpath", "data", "--nounixsocket"]);
        command.args([
            "--logpath",
            "server.log",
            "--logappend",
            "--oplogSize",
            "64",
            "--wiredTigerCacheSizeGB",
            "0.25",
        ]);
        if let Some(tls) = &site.tls {
            // Plain connections stay allowed until the server is ready, since this crate speaks no TLS.
            command.args(["--tlsMode", "allowTLS", "--tlsCAFile"]).arg(tls.authority());
            command.arg("--tlsCertificateKeyFile").arg(tls.certificate());
            if !tls.tls.asks_for_certificate {
                command.arg("--tlsAllowConnectionsWithoutCertificates");
            }
        }
        command.args(["--setParameter", "diagnosticDataCollectionEnabled=false"]);
        // This refresh would make the server a client of itself some time after the start, and its connections would be
        // hard to count.
        command.args(["--setParameter", "disableLogicalSessionCacheRefresh=true"]);
        // This allows `configureFailPoint`, by which a test makes the server answer errors.
        command.args(["--setParameter", "enableTestCommands=1"]);
        Ok(command)
    }

    /// Sets up the replica set and the first user, and logs in. The server lets a local caller create the first user
    /// without a login.
    fn ready(&self, site: &Site) -> Result<(), Error> {
        let mut connection = Connection::open(&site.address)?;
        let hello = connection.run("admin", doc! { "hello": 1 })?;
        if !hello.contains_key("setName") {
            let host = format!("127.0.0.1:{}", site.address.port);
            let set = doc! { "_id": REPLICA_SET, "members": [{ "_id": 0, "host": host }] };
            connection.run("admin", doc! { "replSetInitiate": set })?;
        }
        if !hello.get_bool("isWritablePrimary").unwrap_or(false) {
            return Err(Error::exchange("MongoDB's replica set", "it has no primary yet"));
        }
        if connection.log_in(USER, PASSWORD).is_err() {
            let role = doc! { "role": "root", "db": "admin" };
            connection.run("admin", doc! { "createUser": USER, "pwd": PASSWORD, "roles": [role] })?;
            connection.log_in(USER, PASSWORD)?;
        }
        if site.tls.is_some() {
            for mode in ["preferTLS", "requireTLS"] {
                connection.run("admin", doc! { "setParameter": 1, "tlsMode": mode })?;
            }
        }
        Ok(())
    }
}

impl Service {
    /// The view of a MongoDB's server side.
    ///
    /// # Errors
    /// If this is not a MongoDB.
    pub fn mongo(&self) -> Result<View<'_>, Error> {
        self.site(Kind::Mongo).map(|_| View { service: self })
    }
}

/// The server side of a MongoDB.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    service: &'a Service,
}

/// A connection, with the names that its client gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The client's host and port.
    pub addr: String,
    /// The application name that it gave, or nothing.
    pub app_name: String,
    /// The driver that it named.
    pub driver: String,
}

impl View<'_> {
    /// The connections that are open according to the server's log. The log also lists those of the driver's monitors.
    /// Idle ones count.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn clients(&self) -> Result<Vec<Client>, Error> {
        let mut open: Vec<Client> = Vec::new();
        for line in self.service.log()?.lines() {
            let field = |key: &str| {
                let (_, rest) = line.split_once(&format!("\"{key}\":\""))?;
                rest.split_once('"').map(|(value, _)| value.to_string())
            };
            let Some(addr) = field("remote") else {
                continue;
            };
            if line.contains("\"msg\":\"Connection ended\"") {
                open.retain(|client| client.addr != addr);
            } else if line.contains("\"msg\":\"client metadata\"") {
                let name_in = |part: &str| {
                    let (_, rest) = line.split_once(&format!("\"{part}\":{{\"name\":\""))?;
                    rest.split_once('"').map(|(value, _)| value.to_string())
                };
                let (app_name, driver) = (name_in("application"), name_in("driver"));
                open.push(Client { addr, app_name: app_name.unwrap_or_default(), driver: driver.unwrap_or_default() });
            }
        }
        Ok(open)
    }

    /// The number of connections that the server counts (`serverStatus.connections.current`), except this view's.
    ///
    /// # Errors
    /// If the server does not answer.
    pub fn connections(&self) -> Result<usize, Error> {
        let site = self.service.site(Kind::Mongo)?;
        let mut connection = Connection::open(&site.address)?;
        connection.log_in(&site.address.user, &site.address.password)?;
        let status = connection.run("admin", doc! { "serverStatus": 1 })?;
        let current = status.get_document("connections").and_then(|part| part.get_i32("current"));
        let current = current.map_err(|error| Error::exchange("serverStatus", error))?;
        Ok(usize::try_from(current).unwrap_or_default().saturating_sub(1))
    }

    /// `buildInfo.version`.
    pub(crate) fn version(&self) -> Result<String, Error> {
        let site = self.service.site(Kind::Mongo)?;
        let mut connection = Connection::open(&site.address)?;
        connection.log_in(&site.address.user, &site.address.password)?;
        let info = connection.run("admin", doc! { "buildInfo": 1 })?;
        let version = info.get_str("version").map_err(|error| Error::exchange("buildInfo", error))?;
        Ok(version.to_owned())
    }
}

/// A connection with the part of MongoDB's protocol that this file needs.
struct Connection {
    stream: TcpStream,
}

impl Connection {
    fn open(address: &Address) -> Result<Connection, Error> {
        let open = || {
            let stream = TcpStream::connect((address.host.as_str(), address.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(Connection { stream })
        };
        open().map_err(Error::io("connecting to MongoDB"))
    }

    fn run(&mut self, database: &str, mut command: Document) -> Result<Document, Error> {
        let what = format!("MongoDB {}", command.keys().next().map_or("", String::as_str));
        command.insert("$db", database);
        let answer = self.exchange(&command).map_err(Error::io(what.clone()))?;
        match answer.get_f64("ok") {
            Ok(1.0) => Ok(answer),
            _ => Err(Error::exchange(what, answer.get_str("errmsg").unwrap_or("no reason given"))),
        }
    }

    /// Sends one `OP_MSG`, and receives one.
    fn exchange(&mut self, command: &Document) -> io::Result<Document> {
        const OP_MSG: u32 = 2013;
        const HEAD: usize = 16;
        const FLAGS_AND_KIND: usize = 5;
        let body = bson::to_vec(command).map_err(io::Error::other)?;
        let size = u32::try_from(HEAD + FLAGS_AND_KIND + body.len()).map_err(io::Error::other)?;
        let mut message: Vec<u8> = [size, 1, 0, OP_MSG, 0].iter().flat_map(|field| field.to_le_bytes()).collect();
        message.push(0);
        message.extend(body);
        self.stream.write_all(&message)?;
        let mut size = [0; 4];
        self.stream.read_exact(&mut size)?;
        let mut rest = vec![0; (u32::from_le_bytes(size) as usize).saturating_sub(size.len())];
        self.stream.read_exact(&mut rest)?;
        let body = rest.get(HEAD - size.len() + FLAGS_AND_KIND..).ok_or(io::ErrorKind::InvalidData)?;
        // The server may cut a long text within a character, so the decoder must be lossy.
        bson::from_slice_utf8_lossy(body).map_err(io::Error::other)
    }

    /// Logs in by SCRAM-SHA-256.
    fn log_in(&mut self, user: &str, password: &str) -> Result<(), Error> {
        let broken = || Error::exchange("MongoDB log-in", "the server's answer makes no sense");
        let nonce = BASE64.encode(std::process::id().to_be_bytes());
        let user = user.replace('=', "=3D").replace(',', "=2C");
        let first = format!("n={user},r={nonce}");
        let payload = |bytes| Binary { subtype: BinarySubtype::Generic, bytes };
        let start = payload(format!("n,,{first}").into_bytes());
        let answer = self.run("admin", doc! { "saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": start })?;
        let challenge = answer.get_binary_generic("payload").map_err(|_| broken())?;
        let challenge = String::from_utf8(challenge.to_vec()).map_err(|_| broken())?;
        let part = |key: &str| challenge.split(',').find_map(|part| part.strip_prefix(key)).ok_or_else(broken);
        let salt = BASE64.decode(part("s=")?).map_err(|_| broken())?;
        let rounds = part("i=")?.parse().map_err(|_| broken())?;

        let salted: [u8; 32] = pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), &salt, rounds);
        let key = sign(&salted, b"Client Key");
        let last = format!("c=biws,r={}", part("r=")?);
        let signature = sign(&Sha256::digest(&key), format!("{first},{challenge},{last}").as_bytes());
        let proof: Vec<u8> = key.iter().zip(&signature).map(|(key, signature)| key ^ signature).collect();
        let last = format!("{last},p={}", BASE64.encode(proof));

        let id = answer.get("conversationId").cloned().unwrap_or(Bson::Int32(1));
        let mut answer = last.into_bytes();
        loop {
            let step = doc! { "saslContinue": 1, "conversationId": &id, "payload": payload(answer) };
            if self.run("admin", step)?.get_bool("done").unwrap_or(true) {
                break;
            }
            answer = Vec::new();
        }
        Ok(())
    }
}

fn sign(key: &[u8], text: &[u8]) -> Vec<u8> {
    // HMAC accepts a key of any length, so this cannot fail.
    Hmac::<Sha256>::new_from_slice(key)
        .map(|mac| mac.chain_update(text).finalize().into_bytes().to_vec())
        .unwrap_or_default()
}
