//! ClickHouse: its configuration, and the view of its server side.

use crate::address::{Address, encode};
use crate::process;
use crate::server::{Server, Site};
use crate::{Error, Kind, Service, install, port};
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

/// In the server's configuration a user's name is the name of an XML element, so a colon is the only special character
/// that it can hold.
const USER: &str = "quant:desk";
const PASSWORD: &str = "p@ss:w/rd%2F";
const DATABASE: &str = "desk";

#[derive(Debug, Default)]
pub(crate) struct ClickHouse {
    native_port: u16,
}

impl ClickHouse {
    /// The address of a ClickHouse with these credentials.
    pub(crate) fn at(port: u16, user: &str, password: &str) -> Address {
        Address {
            url: format!("http://{}:{}@127.0.0.1:{port}/{DATABASE}", encode(user), encode(password)),
            host: "127.0.0.1".into(),
            port,
            user: user.into(),
            password: password.into(),
            path: DATABASE.into(),
        }
    }
}

impl Server for ClickHouse {
    fn address(&self, port: u16) -> Address {
        ClickHouse::at(port, USER, PASSWORD)
    }

    fn prepare(&mut self, site: &Site) -> Result<(), Error> {
        self.native_port = port::free()?;
        let tls = site.tls.as_ref().map_or_else(String::new, |tls| {
            let verify = if tls.tls.asks_for_certificate { "strict" } else { "none" };
            format!(
                "
  <https_port>{port}</https_port>
  <openSSL><server>
    <caConfig>{authority}</caConfig><loadDefaultCAFile>false</loadDefaultCAFile>
    <certificateFile>{certificate}</certificateFile><privateKeyFile>{certificate}</privateKeyFile>
    <verificationMode>{verify}</verificationMode>
  </server></openSSL>",
                port = tls.port,
                authority = tls.authority().display(),
                certificate = tls.certificate().display(),
            )
        });
        let config = format!(
            "<yandex>
  <logger><level>information</level><log>{dir}/server.log</log><errorlog>{dir}/error.log</errorlog></logger>
  <listen_host>127.0.0.1</listen_host>
  <http_port>{http}</http_port>{tls}
  <tcp_port>{native}</tcp_port>
  <path>{dir}/data/</path>
  <tmp_path>{dir}/tmp/</tmp_path>
  <user_files_path>{dir}/user_files/</user_files_path>
  <format_schema_path>{dir}/format_schemas/</format_schema_path>
  <users_config>{dir}/users.xml</users_config>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  <mark_cache_size>16777216</mark_cache_size>
  <timezone>UTC</timezone>
</yandex>
",
            dir = site.dir.display(),
            http = site.address.port,
            native = self.native_port,
        );
        for (name, text) in
            [("config.xml", config), ("users.xml", users(0)), ("native.port", self.native_port.to_string())]
        {
            let path = site.dir.join(name);
            fs::write(&path, text).map_err(Error::io(path.to_string_lossy()))?;
        }
        Ok(())
    }

    fn command(&self, site: &Site) -> Result<Command, Error> {
        let mut command = process::command(install::CLICKHOUSE.path()?, &site.dir);
        command.arg(format!("--config-file={}/config.xml", site.dir.display()));
        Ok(command)
    }

    fn ready(&self, site: &Site) -> Result<(), Error> {
        query(&site.address, &format!("CREATE DATABASE IF NOT EXISTS {DATABASE}")).map(drop)
    }
}

/// The file of users, with a quota of so many queries per hour; 0 is no quota.
fn users(queries: u32) -> String {
    let prefix = USER.split_once(':').map_or(USER, |(prefix, _)| prefix);
    format!(
        "<yandex>
  <profiles><default/></profiles>
  <users xmlns:{prefix}=\"user\">
    <{USER}>
      <password>{PASSWORD}</password>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </{USER}>
  </users>
  <quotas><default><interval><duration>3600</duration><queries>{queries}</queries><errors>0</errors><result_rows>0</result_rows>
    <read_rows>0</read_rows><execution_time>0</execution_time></interval></default></quotas>
</yandex>
"
    )
}

impl Service {
    /// The view of a ClickHouse's server side.
    ///
    /// # Errors
    /// If this is not a ClickHouse.
    pub fn clickhouse(&self) -> Result<View<'_>, Error> {
        self.site(Kind::ClickHouse).map(|_| View { service: self })
    }
}

/// The server side of a ClickHouse, seen over a connection of its own.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    service: &'a Service,
}

impl View<'_> {
    /// Runs one statement as the server's user, in the URL's database, and returns the answer as text.
    ///
    /// # Errors
    /// If the server does not answer within thirty seconds or answers an error.
    pub fn query(&self, sql: &str) -> Result<String, Error> {
        query(&self.service.site(Kind::ClickHouse)?.address, sql)
    }

    /// The queries that run now, except this one.
    ///
    /// # Errors
    /// As [`query`](View::query).
    pub fn running(&self) -> Result<Vec<String>, Error> {
        let list = self.query("SELECT replaceAll(query, '\\n', ' ') FROM system.processes")?;
        Ok(list.lines().filter(|query| !query.contains("system.processes")).map(String::from).collect())
    }

    /// Uses up the user's quota, or takes the quota off again. The server sees it within two seconds.
    ///
    /// # Errors
    /// If only the server's URL is known.
    pub fn quota(&self, is_used_up: bool) -> Result<(), Error> {
        self.service.need_dir("set a quota of")?;
        let (path, new) = (self.service.dir().join("users.xml"), self.service.dir().join("users.new"));
        // The rename replaces the file as a whole, because the server may read it at any time.
        let write = || fs::write(&new, users(u32::from(is_used_up))).and_then(|()| fs::rename(&new, &path));
        write().map_err(Error::io(path.to_string_lossy()))
    }

    /// The port of the native protocol, which is not HTTP.
    ///
    /// # Errors
    /// If only the server's URL is known, or it has no such port.
    pub fn native_port(&self) -> Result<u16, Error> {
        self.service.need_dir("look into")?;
        let path = self.service.dir().join("native.port");
        let text = fs::read_to_string(&path).map_err(Error::io(path.to_string_lossy()))?;
        text.parse().map_err(|error| Error::exchange("the native port", error))
    }
}

/// Runs one statement over a connection of its own.
pub(crate) fn query(address: &Address, sql: &str) -> Result<String, Error> {
    let what = "asking ClickHouse";
    let (status, body) = post(address, sql).map_err(Error::io(what))?;
    match status.as_str() {
        "200" => Ok(body),
        status => Err(Error::exchange(what, format!("{status}: {}", body.trim()))),
    }
}

fn post(address: &Address, sql: &str) -> io::Result<(String, String)> {
    // The documented limit of `View::query`.
    const PATIENCE: Duration = Duration::from_secs(30);
    let mut stream = TcpStream::connect((address.host.as_str(), address.port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The database may not exist yet if this statement creates it.
    let database = if sql.starts_with("CREATE DATABASE") { "default" } else { &address.path };
    // HTTP 1.0 ends the answer with the connection, so its length needs no parsing.
    let head = format!(
        "POST /?database={} HTTP/1.0\r\nX-ClickHouse-User: {}\r\nX-ClickHouse-Key: {}\r\nContent-Length: {}\r\n\r\n",
        encode(database),
        address.user,
        address.password,
        sql.len(),
    );
    stream.write_all((head + sql).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    Ok((status.to_string(), body.to_string()))
}
