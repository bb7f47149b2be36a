//! TLS to real servers of all kinds, with certificates that the tests make.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

use resource_pool::config::{ClickHouseConfig, MongoConfig, RabbitMqConfig, RedisConfig, ResourceConfig, TlsOptions};
use resource_pool::{Error, ResourcePool};

/// The configuration of one kind at this URL.
fn config(kind: &str, url: &str, tls: Option<TlsOptions>) -> ResourceConfig {
    macro_rules! with_tls {
        ($config:expr) => {{
            let config = $config;
            match tls {
                Some(tls) => config.tls(tls).into(),
                None => config.into(),
            }
        }};
    }
    match kind {
        "mongo" => with_tls!(MongoConfig::uri(url).min_pool_size(0)),
        "rabbitmq" => with_tls!(RabbitMqConfig::url(url)),
        "clickhouse" => with_tls!(ClickHouseConfig::url(url)),
        _ => with_tls!(RedisConfig::url(url)),
    }
}

fn build(config: ResourceConfig) -> Result<ResourcePool, Error> {
    ResourcePool::builder().environment([("", ""); 0]).resource(config).build()
}

/// The key and the problem of a configuration that cannot be used.
#[track_caller]
fn wrong(kind: &str, url: &str, tls: Option<TlsOptions>) -> (String, String) {
    match build(config(kind, url, tls)) {
        Err(Error::Config { key, problem }) => (key, problem),
        other => panic!("{other:?}"),
    }
}

#[test]
#[cfg(not(feature = "tls"))]
fn without_the_feature_tls_is_refused_with_the_remedy() {
    let secure = [
        ("mongo", "mongodb+srv://h.x.y"),
        ("rabbitmq", "amqps://h"),
        ("clickhouse", "https://h"),
        ("redis", "rediss://h"),
    ];
    for (kind, url) in secure {
        let by_options = if kind == "mongo" { "mongodb://h" } else { url };
        for (url, tls) in [(url, None), (by_options, Some(TlsOptions::default()))] {
            let (key, problem) = wrong(kind, url, tls);
            assert!(key.starts_with(kind) && problem.contains("feature `tls`"), "{key}: {problem}");
        }
    }
    // MongoDB's driver has TLS of its own.
    build(config("mongo", "mongodb://h/?tls=true", None)).unwrap();
}

#[cfg(feature = "tls")]
#[path = "common/mod.rs"]
mod common;

#[cfg(feature = "tls")]
mod with_the_feature {
    use std::fs;
    use std::io::{self, Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, mpsc};
    use std::thread;
    use std::time::{Duration, SystemTime};

    use mongodb::bson::doc;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
    use redis::{AsyncCommands, Commands};
    use resource_pool::config::Options;
    use resource_pool::{ConnectError, Health, State, blocking};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use services::{Kind, Service, Tls};

    use super::common::{Within, until_async};
    use super::*;

    /// The limit for a frozen server to show as an error.
    const FROZEN: Duration = Duration::from_secs(5);
    /// The limit for steps of some seconds, on a busy machine.
    const LONG: Duration = Duration::from_secs(20);
    const ALMOST_NEVER: i32 = 3000;

    /// An authority that signs certificates.
    struct Authority(Issuer<'static, KeyPair>);

    fn params(name: &str, hosts: &[&str]) -> CertificateParams {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    impl Authority {
        /// A new authority, and its certificate.
        fn new(name: &str) -> (Self, String) {
            let mut params = params(name, &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            (Authority(Issuer::new(params, key)), pem)
        }

        /// A new authority that this one has signed, and its certificate.
        fn authorize(&self, name: &str) -> (Self, String) {
            let mut params = params(name, &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let key = KeyPair::generate().unwrap();
            let pem = params.signed_by(&key, &self.0).unwrap().pem();
            (Authority(Issuer::new(params, key)), pem)
        }

        /// A certificate and its key. It is valid until `expiry`, or almost for ever.
        fn sign(&self, name: &str, hosts: &[&str], expiry: Option<SystemTime>) -> [String; 2] {
            let mut params = params(name, hosts);
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = match expiry {
                Some(expiry) => date_time_ymd(1970, 1, 1) + expiry.duration_since(SystemTime::UNIX_EPOCH).unwrap(),
                None => date_time_ymd(ALMOST_NEVER, 1, 1),
            };
            let key = KeyPair::generate().unwrap();
            [params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem()]
        }
    }

    /// A folder with all files of a test.
    struct Files {
        folder: PathBuf,
        authority: Authority,
    }

    impl Files {
        fn new(server_names: &[&str]) -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let folder =
                PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("tls-{}-{number}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let (authority, ca) = Authority::new("ours");
            let files = Files { folder, authority };
            files.write("ca.pem", &ca);
            files.write("other.pem", &Authority::new("somebody else's").1);
            files.write("server.pem", &files.authority.sign("server", server_names, None).concat());
            let [certificate, key] = files.authority.sign("client", &[], None);
            files.write("client.pem", &(certificate.clone() + &key));
            files.write("client.crt", &certificate);
            files.write("client.key", &key);
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.join(name)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            fs::write(self.path(name), text).unwrap();
            self.path(name)
        }

        /// Options that trust this authority.
        fn trusting(&self) -> TlsOptions {
            TlsOptions::default().ca_file(self.path("ca.pem"))
        }

        fn servers(&self, kind: Kind) -> [Service; 2] {
            let [open, strict] = [false, true].map(|asks_for_certificate| {
                let tls = Tls { folder: self.folder.clone(), asks_for_certificate };
                thread::spawn(move || Service::start_with_tls(kind, &tls).unwrap())
            });
            [open.join().unwrap(), strict.join().unwrap()]
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.folder).unwrap();
        }
    }

    /// The server's URL over TLS.
    fn secure(server: &Service, host: &str) -> String {
        url(server, true, host, server.tls_port().unwrap())
    }

    fn url(server: &Service, secure: bool, host: &str, port: u16) -> String {
        let (scheme, rest) = server.url().split_once("://").unwrap();
        let (login, rest) = rest.rsplit_once('@').unwrap();
        let path = rest.split_once('/').unwrap().1;
        let scheme = match (secure, scheme) {
            (false, scheme) => scheme,
            (true, "redis") => "rediss",
            (true, "amqp") => "amqps",
            (true, "http") => "https",
            (true, scheme) => scheme,
        };
        let tls = if secure { "tls=true" } else { "tls=false" };
        let path = path.replace("replicaSet=rs0", &format!("directConnection=true&{tls}"));
        format!("{scheme}://{login}@{host}:{port}/{path}")
    }

    /// A pool without a circuit, so that permanent and transient errors take the same time.
    fn pool_of(kind: Kind, url: &str, tls: Option<TlsOptions>) -> ResourcePool {
        let mut options = Options::default();
        options.circuit = Duration::ZERO;
        let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
        builder.resource(config(kind.name(), url, tls)).build().unwrap()
    }

    /// A round trip of each facade.
    async fn ask(kind: Kind, pool: &ResourcePool) -> Result<(), Error> {
        ask_async(kind, pool).await?;
        let threads: blocking::ResourcePool = pool.clone().into();
        tokio::task::spawn_blocking(move || ask_blocking(kind, &threads)).await.unwrap()
    }

    fn failed(kind: Kind, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        let source: resource_pool::Source = Arc::new(error);
        Error::Operation { resource: kind.name().into(), action: "asking".to_owned(), source }
    }

    async fn ask_async(kind: Kind, pool: &ResourcePool) -> Result<(), Error> {
        match kind {
            Kind::Mongo => {
                let mongo = pool.mongo().await?;
                mongo.database("desk").run_command(doc! { "ping": 1 }).await.map(drop).map_err(|e| failed(kind, e))
            }
            Kind::RabbitMq => {
                let rabbit = pool.rabbitmq().await?;
                rabbit.declare_queue(resource_pool::rabbitmq::Queue::new("asked")).await.map(drop)
            }
            Kind::ClickHouse => {
                let clickhouse = pool.clickhouse().await?;
                clickhouse.query("SELECT 1").execute().await.map_err(|e| failed(kind, e))
            }
            Kind::Redis => {
                let mut redis = pool.redis().await?;
                let mut own = redis.exclusive().await.map_err(|e| failed(kind, e))?;
                let () = own.set("key", vec![7_u8; 100_000]).await.map_err(|e| failed(kind, e))?;
                let value: Vec<u8> = redis.get("key").await.map_err(|e| failed(kind, e))?;
                assert_eq!(value, [7; 100_000]);
                Ok(())
            }
            other => panic!("{other} has a story of its own"),
        }
    }

    fn ask_blocking(kind: Kind, pool: &blocking::ResourcePool) -> Result<(), Error> {
        match kind {
            Kind::Mongo => {
                let mongo = pool.mongo()?;
                mongo.database("desk").run_command(doc! { "ping": 1 }).run().map(drop).map_err(|e| failed(kind, e))
            }
            Kind::RabbitMq => pool.rabbitmq()?.declare_queue(resource_pool::rabbitmq::Queue::new("asked")).map(drop),
            Kind::ClickHouse => pool.clickhouse()?.execute("SELECT 1"),
            Kind::Redis => {
                let mut redis = pool.redis()?;
                let () = redis.set("key", vec![8_u8; 100_000]).map_err(|e| failed(kind, e))?;
                let value: Vec<u8> = redis.get("key").map_err(|e| failed(kind, e))?;
                assert_eq!(value, [8; 100_000]);
                Ok(())
            }
            other => panic!("{other} has a story of its own"),
        }
    }

    /// The error of a connect, which both facades report alike.
    async fn refused(kind: Kind, url: &str, tls: Option<TlsOptions>) -> Arc<ConnectError> {
        let refusal = |asked: Result<(), Error>| match asked {
            Err(Error::Connect(error)) => error,
            other => panic!("{kind} at {url}: {other:?}"),
        };
        let pool = pool_of(kind, url, tls);
        let error = refusal(ask_async(kind, &pool).await);
        let threads: blocking::ResourcePool = pool.clone().into();
        let again = tokio::task::spawn_blocking(move || ask_blocking(kind, &threads)).await.unwrap();
        assert_eq!(refusal(again).permanent, error.permanent);
        assert!(pool.close_all().await.all_closed());
        error
    }

    /// Checks for a permanent refusal whose text has these words.
    async fn refused_for_good(kind: Kind, url: &str, tls: Option<TlsOptions>, words: &[&str]) {
        let error = refused(kind, url, tls).await;
        let text = error.to_string();
        assert!(error.permanent && error.attempts == 1, "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{kind}: {words:?} in {text}");
    }

    /// The files are replaced while the pool runs, and each connect reads them as they are then.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn tls_files_are_read_at_every_connect() {
        let files = Files::new(&["localhost"]);
        let tls = Tls { folder: files.folder.clone(), asks_for_certificate: true };
        let server = Service::start_with_tls(Kind::Redis, &tls).unwrap();
        let right = ["ca.pem", "client.pem"].map(|name| fs::read_to_string(files.path(name)).unwrap());
        let ca = files.write("now-ca.pem", &fs::read_to_string(files.path("other.pem")).unwrap());
        let own = files.write("now-client.pem", &right[1]);
        let tls = TlsOptions::default().ca_file(&ca).cert_file(&own);
        let pool = pool_of(Kind::Redis, &secure(&server, "localhost"), Some(tls));
        let error = pool.redis().await.map(drop).unwrap_err().to_string();
        assert!(error.contains("UnknownIssuer"), "{error}");
        fs::write(&ca, &right[0]).unwrap();
        ask(Kind::Redis, &pool).await.unwrap();

        // A file is gone when a further connection is opened, or is of no use.
        let redis = pool.redis().await.unwrap();
        for broken in [None, Some("no certificate")] {
            match broken {
                None => fs::remove_file(&own).unwrap(),
                Some(text) => fs::write(&own, text).unwrap(),
            }
            let error = redis.exclusive().await.map(drop).unwrap_err().to_string();
            let path = own.display().to_string();
            assert!(error.contains(&path) && error.contains("every connect reads it again"), "{error}");
        }
        let [certificate, key] = files.authority.sign("client", &[], None);
        fs::write(&own, certificate + &key).unwrap();
        drop(redis.exclusive().await.expect("a new certificate"));
        ask(Kind::Redis, &pool).await.unwrap();
        assert!(pool.close_all().await.all_closed());
    }

    async fn handshakes(kind: Kind, files: &Files, open: &Service, strict: &Service) {
        let local = secure(open, "localhost");
        let pool = pool_of(kind, &local, Some(files.trusting()));
        ask(kind, &pool).await.unwrap();
        let endpoint = pool.status().resource(kind.name()).unwrap().endpoint.to_string();
        assert_eq!(endpoint.split("://").next(), local.split("://").next());
        assert_eq!(pool.health_check().await.entry(kind.name()).unwrap().health, Health::Pass);
        let report = pool.close_all().await;
        assert!(report.all_closed(), "{report}");

        // The environment changes the host alone. TLS and the login stay as the file has them.
        let below = secure(open, "localhost.invalid");
        let key = if kind == Kind::Mongo { "uri" } else { "url" };
        let ca = files.path("ca.pem");
        let text = format!("[{kind}]\n{key} = {below:?}\n[{kind}.tls]\nca_file = {ca:?}\n", kind = kind.name());
        let file = files.write(&format!("{}.toml", kind.name()), &text);
        let variable = if kind == Kind::Mongo { "MONGODB" } else { kind.name() }.to_uppercase() + "_HOST";
        let moved = ResourcePool::builder().config_file(file).environment([(variable, "localhost")]).build().unwrap();
        ask(kind, &moved).await.unwrap();
        assert!(moved.close_all().await.all_closed());

        // The certificate does not match.
        let other = TlsOptions::default().ca_file(files.path("other.pem"));
        refused_for_good(kind, &local, Some(other), &["UnknownIssuer", "ca_file"]).await;
        refused_for_good(kind, &local, None, &["UnknownIssuer", "ca_file"]).await;
        let numeric = secure(open, "127.0.0.1");
        let trusting = Some(files.trusting());
        refused_for_good(kind, &numeric, trusting.clone(), &["127.0.0.1", "localhost", "certificate's names"]).await;
        let named = files.trusting().server_name("localhost");
        if kind == Kind::Mongo {
            assert_eq!(wrong(kind.name(), &numeric, Some(named)).0, "mongo.tls.server_name");
        } else {
            ask(kind, &pool_of(kind, &numeric, Some(named))).await.unwrap();
        }

        // The password is wrong.
        let mistyped = local.replacen(":p%40ss", ":mistyped", 1);
        assert_ne!(mistyped, local);
        let error = refused(kind, &mistyped, trusting.clone()).await;
        assert!(error.permanent && !format!("{error} {error:?}").contains("mistyped"), "{error}");
        assert!(error.to_string().ends_with("; user and password are of the configuration in code"), "{error}");
        let variable = if kind == Kind::Mongo { "MONGODB" } else { kind.name() }.to_uppercase() + "_PASSWORD";
        let file = files.path(&format!("{}.toml", kind.name()));
        let environment = [(variable.replace("PASSWORD", "HOST"), "localhost"), (variable.clone(), "mistyped")];
        let mixed = ResourcePool::builder().config_file(&file).environment(environment).build().unwrap();
        let error = mixed.warm_up([kind.name()]).await.remove(0).1.unwrap_err().to_string();
        let remedy = format!("; user and password are of {}.{key} in {} and {variable}", kind.name(), file.display());
        assert!(error.ends_with(&remedy), "{error}");

        // Certificates of clients.
        let strict_url = secure(strict, "localhost");
        let with = |tls: TlsOptions| pool_of(kind, &strict_url, Some(tls));
        ask(kind, &with(files.trusting().cert_file(files.path("client.pem")))).await.unwrap();
        let apart = files.trusting().cert_file(files.path("client.crt")).key_file(files.path("client.key"));
        if kind == Kind::Mongo {
            assert_eq!(wrong(kind.name(), &strict_url, Some(apart)).0, "mongo.tls.key_file");
            // Neither the server nor the driver gives a reason.
            let error = refused(kind, &strict_url, trusting.clone()).await;
            assert!(!error.permanent && error.to_string().contains("cert_file"), "{error}");
        } else {
            ask(kind, &with(apart)).await.unwrap();
            refused_for_good(kind, &strict_url, trusting.clone(), &["client certificate", "cert_file"]).await;
        }

        // The URL's scheme and the port do not match.
        let plain_to_tls = url(open, false, "localhost", open.tls_port().unwrap());
        refused_for_good(kind, &plain_to_tls, None, &["this port speaks TLS"]).await;
        if kind != Kind::Mongo {
            let tls_to_plain = url(open, true, "localhost", open.port());
            let error = refused(kind, &tls_to_plain, trusting).await;
            let text = error.to_string();
            // A Redis waits for the end of a line, and a ClickHouse may too, because it takes the random bytes for a
            // command.
            let waits = kind != Kind::RabbitMq && text.contains("no answer within");
            assert!(!error.permanent && (waits || text.contains("speaks no TLS")), "{text}");
        }
    }

    async fn freezes_and_comes_back(kind: Kind, files: &Files, server: &Service) {
        let local = secure(server, "localhost");
        let used = pool_of(kind, &local, Some(files.trusting()));
        ask(kind, &used).await.unwrap();
        server.freeze().unwrap();
        let fresh = pool_of(kind, &local, Some(files.trusting()));
        let threads: blocking::ResourcePool = used.clone().into();
        let in_thread = tokio::task::spawn_blocking(move || ask_blocking(kind, &threads));
        // Each backend's own tests check the exact limits. Here three calls at once on few cores take longer.
        let (in_thread, in_flight, in_handshake) = tokio::join!(
            in_thread.within(FROZEN * 2),
            ask_async(kind, &used).within(FROZEN * 2),
            ask_async(kind, &fresh).within(FROZEN * 2),
        );
        server.thaw().unwrap();
        for in_flight in [in_thread.unwrap(), in_flight] {
            assert!(in_flight.is_err(), "{in_flight:?}");
        }
        assert!(in_handshake.unwrap_err().is_transient());
        for pool in [&used, &fresh] {
            until_async(LONG, async || ask(kind, pool).await.is_ok()).await;
        }
        server.restart().unwrap();
        for pool in [&used, &fresh] {
            until_async(LONG, async || ask(kind, pool).await.is_ok()).await;
            assert!(pool.close_all().await.all_closed());
        }
    }

    /// Gives the server a certificate that has expired.
    async fn expire(kind: Kind, files: &Files, server: &Service) {
        let soon = SystemTime::now() + Duration::from_secs(2);
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let until = if kind == Kind::Mongo { soon } else { long_ago };
        let expired = files.authority.sign("server", &["localhost"], Some(until)).concat();
        let local = secure(server, "localhost");
        match kind {
            Kind::Mongo => {
                // MongoDB refuses a certificate that has already expired.
                let pool = pool_of(kind, &local, Some(files.trusting()));
                let mongo = pool.mongo().await.unwrap();
                files.write("server.pem", &expired);
                mongo.database("admin").run_command(doc! { "rotateCertificates": 1 }).await.unwrap();
                pool.close_all().await;
                until_async(Duration::from_secs(10), async || SystemTime::now() > until + Duration::from_secs(1)).await;
            }
            Kind::RabbitMq => {
                files.write("server.pem", &expired);
                server.rabbitmq().unwrap().eval("ssl:clear_pem_cache()").unwrap();
            }
            Kind::ClickHouse => {
                files.write("server.pem", &expired);
                server.restart().unwrap();
            }
            Kind::Redis => {
                let file = files.write("expired.pem", &expired);
                let mut set = redis::cmd("CONFIG");
                set.arg("SET").arg("tls-cert-file").arg(file.to_str()).arg("tls-key-file").arg(file.to_str());
                let admin = redis::Client::open(server.url()).unwrap();
                let () = set.query(&mut admin.get_connection().unwrap()).unwrap();
            }
            other => panic!("{other} has a story of its own"),
        }
        let error = refused(kind, &local, Some(files.trusting())).await;
        let text = error.to_string();
        assert!(!error.permanent && text.contains("expired") && text.contains("renewed"), "{text}");
    }

    /// A server that restarts may soon have another certificate, so the error is not permanent.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_restart_with_a_bad_certificate_is_got_over() {
        let files = Files::new(&["localhost"]);
        let tls = Tls { folder: files.folder.clone(), asks_for_certificate: false };
        let server = Service::start_with_tls(Kind::Redis, &tls).unwrap();
        let pool = pool_of(Kind::Redis, &secure(&server, "localhost"), Some(files.trusting()));
        ask(Kind::Redis, &pool).await.unwrap();
        let good = fs::read_to_string(files.path("server.pem")).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        files.write("server.pem", &files.authority.sign("server", &["localhost"], Some(long_ago)).concat());
        server.restart().unwrap();
        let status = || pool.status().resource("redis").unwrap().clone();
        let told = || status().error.map(|error| error.to_string()).unwrap_or_default();
        until_async(LONG, async || told().contains("expired")).await;
        files.write("server.pem", &good);
        server.restart().unwrap();
        // The pool recovers by itself, without a caller.
        until_async(LONG, async || status().state == State::Ready).await;
        ask(Kind::Redis, &pool).await.unwrap();
        assert!(pool.close_all().await.all_closed());
    }

    /// A certificate for localhost that its own key has signed, with that key.
    fn self_signed(is_ca: IsCa) -> String {
        let mut params = params("server", &["localhost"]);
        params.is_ca = is_ca;
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem() + &key.serialize_pem()
    }

    /// A certificate as `openssl` makes it without extensions.
    fn of_version_1(files: &Files) -> String {
        let [key, request, certificate] = ["v1.key", "v1.csr", "v1.pem"].map(|name| files.path(name));
        let openssl = |arguments: &[&str], paths: &[(&str, &PathBuf)]| {
            let mut openssl = Command::new("openssl");
            openssl.args(arguments);
            for (flag, path) in paths {
                openssl.arg(flag).arg(path);
            }
            let output = openssl.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        openssl(
            &["req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"],
            &[("-keyout", &key), ("-out", &request)],
        );
        openssl(&["x509", "-req", "-days", "9"], &[("-in", &request), ("-signkey", &key), ("-out", &certificate)]);
        fs::read_to_string(certificate).unwrap() + &fs::read_to_string(key).unwrap()
    }

    /// Mistakes in certificates that users make by themselves, and the remedy in the error. If the right certificate is
    /// a small step away, it is the control.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn usual_mistakes_with_certificates_have_a_remedy() {
        for kind in [Kind::Redis, Kind::Mongo] {
            let mistakes: [(&str, &[&str]); 4] = [
                ("an authority's own", &["CaUsedAsEndEntity", "CA:TRUE", "basicConstraints=critical,CA:FALSE"]),
                ("version 1", &["UnsupportedCertVersion", "version 1", "-extfile"]),
                ("no name", &["subjectAltName", "CN"]),
                ("nothing between", &["UnknownIssuer", "ca_file", "send that along"]),
            ];
            for (mistake, words) in mistakes {
                let files = Files::new(&["localhost"]);
                let (between, between_pem) = files.authority.authorize("between");
                let short = between.sign("server", &["localhost"], None);
                let (server, trusted, better) = match mistake {
                    "an authority's own" => {
                        let bad = self_signed(IsCa::Ca(BasicConstraints::Unconstrained));
                        let good = self_signed(IsCa::ExplicitNoCa);
                        (bad.clone(), Some(bad), Some((good.clone(), Some(good))))
                    }
                    "version 1" => {
                        let old = of_version_1(&files);
                        (old.clone(), Some(old), None)
                    }
                    "no name" => (files.authority.sign("localhost", &[], None).concat(), None, None),
                    _ => (short.concat(), None, Some(([&*short[0], &between_pem, &short[1]].concat(), None))),
                };
                let serve = |server: &str, trusted: &Option<String>| {
                    files.write("server.pem", server);
                    let ca =
                        trusted.as_ref().map_or(files.path("ca.pem"), |trusted| files.write("trusted.pem", trusted));
                    let tls = Tls { folder: files.folder.clone(), asks_for_certificate: false };
                    (Service::start_with_tls(kind, &tls).unwrap(), TlsOptions::default().ca_file(ca))
                };
                let (bad, tls) = serve(&server, &trusted);
                refused_for_good(kind, &secure(&bad, "localhost"), Some(tls), words).await;
                if let Some((server, trusted)) = better {
                    let (good, tls) = serve(&server, &trusted);
                    let pool = pool_of(kind, &secure(&good, "localhost"), Some(tls));
                    ask(kind, &pool).await.unwrap();
                    assert!(pool.close_all().await.all_closed());
                }
            }
        }
    }

    /// Answers instead of a handshake, and whether each is permanent.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_ends_a_handshake_is_told_apart() {
        let (internal_error, decode_error, user_canceled) = (80, 50, 90);
        let (unknown_ca, protocol_version) = (48, 70);
        let alert = |number| vec![21, 3, 3, 0, 2, 2, number];
        let files = Files::new(&["localhost"]);
        for (answer, permanent) in [
            (alert(internal_error), false),
            (alert(decode_error), false),
            (alert(user_canceled), false),
            (b"HTTP/1.1 503 Service Unavailable\r\n\r\n".to_vec(), false),
            (alert(unknown_ca), true),
            (alert(protocol_version), true),
        ] {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let url = format!("rediss://localhost:{}", listener.local_addr().unwrap().port());
            let said = answer.clone();
            thread::spawn(move || {
                for mut client in listener.incoming().flatten() {
                    let _ = client.read(&mut [0; 4096]).and_then(|_| client.write_all(&said));
                }
            });
            let error = refused(Kind::Redis, &url, Some(files.trusting())).await;
            assert_eq!(error.permanent, permanent, "{answer:?}: {error}");
        }
    }

    /// A Redis or a ClickHouse answers nothing if it takes the first bytes of a handshake for the beginning of a
    /// command.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_port_that_says_nothing_gives_no_answer() {
        let files = Files::new(&["localhost"]);
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let silence = async |kind, scheme| {
            let error = refused(kind, &format!("{scheme}://localhost:{port}"), Some(files.trusting())).await;
            assert!(!error.permanent && error.to_string().contains("no answer within"), "{error}");
        };
        tokio::join!(
            silence(Kind::RabbitMq, "amqps"),
            silence(Kind::ClickHouse, "https"),
            silence(Kind::Redis, "rediss"),
        );
    }

    async fn story(kind: Kind) {
        let files = Files::new(&["localhost"]);
        let [open, strict] = files.servers(kind);
        handshakes(kind, &files, &open, &strict).await;
        drop(strict);
        freezes_and_comes_back(kind, &files, &open).await;
        expire(kind, &files, &open).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn mongo_over_tls() {
        story(Kind::Mongo).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn rabbitmq_over_tls() {
        story(Kind::RabbitMq).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clickhouse_over_tls() {
        story(Kind::ClickHouse).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_over_tls() {
        story(Kind::Redis).await;
    }

    /// PostgreSQL's driver has a TLS client of its own, over the same port.
    #[cfg(feature = "postgres")]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres_over_tls() {
        use resource_pool::config::PostgresConfig;
        use resource_pool::sqlx;

        let files = Files::new(&["localhost"]);
        let [open, strict] = files.servers(Kind::Postgres);
        let url = |server: &Service, host: &str, mode: &str| {
            format!("{}?sslmode={mode}", server.url().replacen("127.0.0.1", host, 1))
        };
        let pool = |url: String, tls: Option<TlsOptions>| {
            let mut config = PostgresConfig::url(url);
            config.tls = tls;
            ResourcePool::builder().environment([("", ""); 0]).resource(config).build().unwrap()
        };
        let is_secure = async |pool: ResourcePool| {
            let mut postgres = pool.postgres().await.unwrap();
            let ask = sqlx::query_scalar("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
            let is_secure: bool = ask.fetch_one(&mut postgres).await.unwrap();
            drop(postgres);
            assert!(is_secure && pool.close_all().await.all_closed());
        };
        is_secure(pool(url(&open, "localhost", "require"), Some(files.trusting()))).await;
        let strictly = files.trusting().cert_file(files.path("client.crt")).key_file(files.path("client.key"));
        is_secure(pool(url(&strict, "localhost", "verify-full"), Some(strictly))).await;
        let refused = async |pool: ResourcePool, words: &[&str]| {
            let Err(Error::Connect(error)) = pool.postgres().await else { panic!("it connects") };
            let text = error.to_string();
            assert!(error.permanent && words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
        };
        let other = TlsOptions::default().ca_file(files.path("other.pem"));
        let local = || url(&open, "localhost", "verify-full");
        refused(pool(local(), Some(other)), &["UnknownIssuer", "ca_file"]).await;
        let numeric = url(&open, "127.0.0.1", "verify-full");
        refused(pool(numeric, Some(files.trusting())), &["127.0.0.1", "localhost"]).await;
        refused(pool(url(&open, "localhost", "disable"), None), &["no encryption", "sslmode=verify-full"]).await;
        refused(pool(url(&strict, "localhost", "require"), Some(files.trusting())), &["client certificate"]).await;
        let named = PostgresConfig::url(local()).tls(files.trusting().server_name("localhost"));
        let wrong = ResourcePool::builder().environment([("", ""); 0]).resource(named).build();
        assert!(matches!(&wrong, Err(Error::Config { key, .. }) if key == "postgres.tls.server_name"), "{wrong:?}");
    }

    /// MySQL's driver has a TLS client of its own, over the same port.
    #[cfg(feature = "mysql")]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn mysql_over_tls() {
        use resource_pool::config::MySqlConfig;
        use resource_pool::sqlx;

        let files = Files::new(&["localhost"]);
        let [open, strict] = files.servers(Kind::MySql);
        let url = |server: &Service, host: &str, mode: &str| {
            format!("{}?ssl-mode={mode}", server.url().replacen("127.0.0.1", host, 1))
        };
        let pool = |url: String, tls: Option<TlsOptions>| {
            let mut config = MySqlConfig::url(url);
            config.tls = tls;
            ResourcePool::builder().environment([("", ""); 0]).resource(config).build().unwrap()
        };
        let is_secure = async |pool: ResourcePool| {
            let mut mysql = pool.mysql().await.unwrap();
            let (_, cipher): (String, String) =
                sqlx::query_as("SHOW STATUS LIKE 'Ssl_cipher'").fetch_one(&mut mysql).await.unwrap();
            drop(mysql);
            assert!(!cipher.is_empty() && pool.close_all().await.all_closed());
        };
        is_secure(pool(url(&open, "localhost", "required"), Some(files.trusting()))).await;
        let strictly = files.trusting().cert_file(files.path("client.crt")).key_file(files.path("client.key"));
        is_secure(pool(url(&strict, "localhost", "VERIFY_IDENTITY"), Some(strictly))).await;
        let refused = async |pool: ResourcePool, words: &[&str]| {
            let Err(Error::Connect(error)) = pool.mysql().await else { panic!("it connects") };
            let text = error.to_string();
            assert!(error.permanent && words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
        };
        let other = TlsOptions::default().ca_file(files.path("other.pem"));
        let local = || url(&open, "localhost", "REQUIRED");
        refused(pool(local(), Some(other)), &["UnknownIssuer", "ca_file"]).await;
        let numeric = url(&open, "127.0.0.1", "REQUIRED");
        refused(pool(numeric, Some(files.trusting())), &["127.0.0.1", "localhost"]).await;
        // The server says of both only that it denies access.
        refused(pool(url(&open, "localhost", "DISABLED"), None), &["Access denied"]).await;
        refused(pool(url(&strict, "localhost", "REQUIRED"), Some(files.trusting())), &["Access denied"]).await;
        let named = MySqlConfig::url(local()).tls(files.trusting().server_name("localhost"));
        let wrong = ResourcePool::builder().environment([("", ""); 0]).resource(named).build();
        assert!(matches!(&wrong, Err(Error::Config { key, .. }) if key == "mysql.tls.server_name"), "{wrong:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_is_told_goodbye() {
        let files = Files::new(&["localhost"]);
        let front = Front::start(&files, services::shared(Kind::Redis).port());
        let address = url(services::shared(Kind::Redis), true, "localhost", front.port);
        let pool = pool_of(Kind::Redis, &address, Some(files.trusting()));
        ask(Kind::Redis, &pool).await.unwrap();
        let threads: blocking::ResourcePool = pool.clone().into();
        let spend = move || {
            // A connection that watches a key is not handed out again.
            let () = redis::cmd("WATCH").arg("key").query(&mut threads.redis().unwrap()).unwrap();
            ask_blocking(Kind::Redis, &threads).unwrap();
        };
        tokio::task::spawn_blocking(spend).await.unwrap();
        assert!(pool.close_all().await.all_closed());
        let ends: Vec<_> = (0..4).map(|_| front.ends.recv_timeout(FROZEN).unwrap()).collect();
        assert_eq!(ends, ["goodbye"; 4]);
    }

    /// A TLS proxy in front of a server. It reports how each client's connection ended.
    struct Front {
        port: u16,
        ends: mpsc::Receiver<&'static str>,
    }

    impl Front {
        fn start(files: &Files, behind: u16) -> Self {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let chain = CertificateDer::pem_file_iter(files.path("server.pem")).unwrap().map(Result::unwrap).collect();
            let key = PrivateKeyDer::from_pem_file(files.path("server.pem")).unwrap();
            let config =
                rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_no_client_auth()
                    .with_single_cert(chain, key)
                    .unwrap();
            let (config, (sender, ends)) = (Arc::new(config), mpsc::channel());
            thread::spawn(move || {
                for client in listener.incoming() {
                    let (client, config, sender) = (client.unwrap(), Arc::clone(&config), sender.clone());
                    thread::spawn(move || sender.send(forward(client, config, behind)));
                }
            });
            Front { port, ends }
        }
    }

    /// Forwards in both directions until the client ends. Returns how it ended.
    fn forward(mut client: TcpStream, config: Arc<rustls::ServerConfig>, behind: u16) -> &'static str {
        let mut server = TcpStream::connect(("127.0.0.1", behind)).unwrap();
        let mut session = rustls::ServerConnection::new(config).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        server.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match rustls::Stream::new(&mut session, &mut client).read(&mut buffer) {
                Ok(0) => return "goodbye",
                Ok(count) => {
                    server.set_nonblocking(false).unwrap();
                    server.write_all(&buffer[..count]).unwrap();
                    server.set_nonblocking(true).unwrap();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return "no goodbye",
            }
            while let Ok(count @ 1..) = server.read(&mut buffer) {
                rustls::Stream::new(&mut session, &mut client).write_all(&buffer[..count]).unwrap();
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn files_that_cannot_be_used_are_named() {
        let files = Files::new(&["localhost"]);
        let secret = fs::read_to_string(files.path("client.key")).unwrap();
        let secret = secret.lines().nth(1).unwrap();
        files.write("empty.pem", "");
        files.write("long.pem", &"-".repeat(5 * 1024 * 1024));
        let pipe = std::process::Command::new("mkfifo").arg(files.path("pipe")).status().unwrap();
        assert!(pipe.success());
        files.write("garbage.pem", &format!("-----BEGIN PRIVATE KEY----\n{secret}\n"));
        files.write("stranger.key", &files.authority.sign("stranger", &[], None)[1]);
        let options = TlsOptions::default();
        let cases = [
            ("ca_file", "missing.pem", "cannot be read", options.clone().ca_file(files.path("missing.pem"))),
            ("ca_file", "long.pem", "over 4194304 bytes", options.clone().ca_file(files.path("long.pem"))),
            ("ca_file", "pipe", "no regular file", options.clone().ca_file(files.path("pipe"))),
            ("cert_file", "pipe", "no regular file", options.clone().cert_file(files.path("pipe"))),
            ("ca_file", "empty.pem", "no certificate", options.clone().ca_file(files.path("empty.pem"))),
            ("ca_file", "client.key", "no certificate", options.clone().ca_file(files.path("client.key"))),
            ("ca_file", "garbage.pem", "PEM", options.clone().ca_file(files.path("garbage.pem"))),
            ("cert_file", "client.crt", "no private key", options.clone().cert_file(files.path("client.crt"))),
            ("cert_file", "empty.pem", "no certificate", options.cert_file(files.path("empty.pem"))),
        ];
        let client = TlsOptions::default().cert_file(files.path("client.crt"));
        let keys = [
            ("key_file", "garbage.pem", "not PEM", client.clone().key_file(files.path("garbage.pem"))),
            ("key_file", "stranger.key", "another certificate", client.key_file(files.path("stranger.key"))),
            ("key_file", "", "without cert_file", TlsOptions::default().key_file(files.path("client.key"))),
        ];
        let urls =
            [("mongo", "mongodb://h"), ("rabbitmq", "amqps://h"), ("clickhouse", "https://h"), ("redis", "rediss://h")];
        for (kind, url) in urls {
            // MongoDB has no separate option for the key.
            for (field, file, words, tls) in cases.iter().chain(keys.iter().filter(|_| kind != "mongo")) {
                let (key, problem) = wrong(kind, url, Some(tls.clone()));
                assert_eq!(key, format!("{kind}.tls.{field}"), "{problem}");
                assert!(problem.contains(file) && problem.contains(words), "{file}, {words}: {problem}");
                assert!(!problem.contains(&secret[..8]), "{problem}");
            }
        }
        let by_uri = format!("mongodb://h/?tls=true&tlsCAFile={}", files.path("empty.pem").display());
        assert!(wrong("mongo", &by_uri, None).1.contains("no certificate"));
        // The output of a pool with a key shows nothing of the key.
        for (kind, url) in urls {
            let tls = files.trusting().cert_file(files.path("client.pem"));
            let builder = ResourcePool::builder().environment([("", ""); 0]).resource(config(kind, url, Some(tls)));
            let shown = format!("{builder:?}");
            let shown = format!("{shown} {:?}", builder.build().unwrap());
            assert!(shown.contains("client.pem") && !shown.contains(&secret[..8]), "{shown}");
        }
    }

    #[test]
    fn tls_is_configured_by_scheme_table_and_environment() {
        let files = Files::new(&["localhost"]);
        let ca = files.path("ca.pem").display().to_string();
        let endpoint = |toml: &str, environment: &[(&str, &str)]| {
            let file = files.write("pool.toml", toml);
            let builder = ResourcePool::builder().environment(environment.iter().copied()).config_file(file);
            builder.build().map(|pool| pool.status().resource("redis").unwrap().endpoint.to_string())
        };
        let table = format!("[redis]\nhost = 'h'\nport = 1\n[redis.tls]\nca_file = '{ca}'\n");
        for (toml, environment, expected) in [
            ("", &[("REDIS_URL", "rediss://h:1")][..], "rediss://h:1/0"),
            ("", &[("REDIS_HOST", "h"), ("REDIS_PORT", "1"), ("REDIS_TLS", "true")], "rediss://h:1/0"),
            ("", &[("REDIS_HOST", "h"), ("REDIS_PORT", "1"), ("REDIS_TLS_CA_FILE", &ca)], "rediss://h:1/0"),
            ("[redis]\nurl = 'redis://h:1'", &[], "redis://h:1/0"),
            (&table, &[], "rediss://h:1/0"),
            (&table, &[("REDIS_TLS", "false")], "redis://h:1/0"),
            (&table, &[("REDIS_TLS", "false"), ("REDIS_URL", "redis://g:2")], "redis://g:2/0"),
            (&table, &[("REDIS_URL", "rediss://g:2")], "rediss://g:2/0"),
            (&table, &[("REDIS_URL", "redis://g:2")], "redis://g:2/0"),
            ("[redis]\nurl = 'redis://h:1'", &[("REDIS_TLS", "true")], "rediss://h:1/0"),
        ] {
            assert_eq!(endpoint(toml, environment).unwrap(), expected, "{toml} {environment:?}");
        }
        for (toml, environment, key) in [
            ("[redis]\nurl = 'redis://g:2'\n[redis.tls]", &[][..], "redis.url"),
            ("[redis.tls]\nverify = false", &[], "redis.tls.verify"),
            ("[mongo]\nuri = 'mongodb://h/?tls=false'\n[mongo.tls]", &[], "mongo.tls"),
        ] {
            match endpoint(toml, environment) {
                Err(Error::Config { key: named, .. }) => assert!(named.starts_with(key), "{named}"),
                other => panic!("{toml} {environment:?}: {other:?}"),
            }
        }
        for environment in [("REDIS_TLS", "true"), ("REDIS_TLS_CA_FILE", &*ca)] {
            let builder = ResourcePool::builder().environment([("REDIS_URL", "redis://g:2"), environment]);
            let is_refused = builder.build().unwrap().status().resource("redis").is_none();
            assert!(is_refused, "a plain URL and TLS, both in one layer");
        }
        let ports = [("amqps://h", "rabbitmq", "amqps://h:5671/"), ("https://h", "clickhouse", "https://h:8443/")];
        for (url, kind, expected) in ports.into_iter().chain([("https://h:443", "clickhouse", "https://h:443/")]) {
            let pool = build(config(kind, url, None)).unwrap();
            assert!(pool.status().resource(kind).unwrap().endpoint.starts_with(expected));
        }
    }

    const ASKED_IN_PRIVATE: &str = "RESOURCE_POOL_TEST_SRV_CA";

    /// Runs in a mount namespace of its own, where `/etc/resolv.conf` names the test's DNS server.
    #[test]
    fn mongo_srv_asks_the_dns() {
        if let Ok(ca) = std::env::var(ASKED_IN_PRIVATE) {
            return ask_over_srv(Path::new(&ca));
        }
        let files = Files::new(&["node.pool.test", "127.0.0.1"]);
        let server =
            Service::start_with_tls(Kind::Mongo, &Tls { folder: files.folder.clone(), asks_for_certificate: false });
        let server = server.unwrap();
        let number = std::process::id();
        let dns = Ipv4Addr::new(127, 53, (number >> 8) as u8, number as u8);
        let socket = match UdpSocket::bind((dns, 53)) {
            Ok(socket) => socket,
            Err(error) => return skipped(&format!("port 53 of {dns} cannot be had: {error}")),
        };
        let port = server.port();
        let asked = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&asked);
        thread::spawn(move || serve_dns(&socket, port, &counted));
        let resolv = files.write("resolv.conf", &format!("nameserver {dns}\n"));
        let mount = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;
        let private = |program: &std::ffi::OsStr, arguments: &[&str]| {
            let mut unshare = Command::new("unshare");
            unshare.args(["--mount", "sh", "-c", mount]).arg(&resolv).arg(program).args(arguments);
            unshare
        };
        match private("true".as_ref(), &[]).output() {
            Ok(output) if output.status.success() => {}
            other => return skipped(&format!("no mount namespace is to be had: {other:?}")),
        }
        let me = std::env::current_exe().unwrap();
        let arguments = ["--exact", "with_the_feature::mongo_srv_asks_the_dns", "--nocapture"];
        let mut ask = private(me.as_os_str(), &arguments);
        let (_, rest) = server.url().split_once("://").unwrap();
        let login = rest.rsplit_once('@').unwrap().0;
        let output = ask.env(ASKED_IN_PRIVATE, files.path("ca.pem")).env("LOGIN", login).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("asked over SRV"), "{said}");
        assert_eq!(asked.load(Ordering::SeqCst), 2, "when it first connected, and after it was closed");
    }

    fn skipped(why: &str) {
        assert_ne!(std::env::var("RESOURCE_POOL_TEST_NAMESPACES").as_deref(), Ok("required"), "{why}");
        // This writes past the harness, which captures the output of tests.
        let said = format!("mongo_srv_asks_the_dns: skipped, as this machine forbids it: {why}\n");
        io::stderr().write_all(said.as_bytes()).unwrap();
    }

    fn ask_over_srv(ca: &Path) {
        let login = std::env::var("LOGIN").unwrap();
        let tls = TlsOptions::default().ca_file(ca);
        let over = |name: &str| {
            let uri = format!("mongodb+srv://{login}@{name}/desk");
            let mut options = Options::default();
            options.retry.attempts = 1;
            let builder = blocking::ResourcePool::builder().environment([("", ""); 0]).options(options);
            builder.resource(config("mongo", &uri, Some(tls.clone()))).build().unwrap()
        };
        let pool = over("db.pool.test");
        assert_eq!(pool.status().resource("mongo").unwrap().endpoint.to_string(), "mongodb+srv://db.pool.test/desk");
        let mongo = pool.mongo().unwrap();
        let client = mongo.default_database().unwrap();
        client.run_command(doc! { "ping": 1 }).run().unwrap();
        // The TXT record has the authentication database. Without it the user would be unknown.
        client.collection("bars").insert_one(doc! { "close": 1.0 }).run().unwrap();
        // The same client goes on with the hosts that it knows. Only a new one asks the DNS again.
        pool.reconnect("mongo").unwrap();
        pool.close("mongo").unwrap();
        pool.reconnect("mongo").unwrap();
        assert!(pool.close_all().unwrap().all_closed());
        let error = over("nobody.pool.test").mongo().unwrap_err();
        assert!(matches!(error, Error::Connect(_)), "{error:?}");
        println!("asked over SRV");
    }

    /// Answers the queries of a client of `mongodb+srv://db.pool.test`. Any other name does not exist.
    fn serve_dns(socket: &UdpSocket, port: u16, asked_for_hosts: &AtomicU32) {
        const A: u16 = 1;
        const TXT: u16 = 16;
        const SRV: u16 = 33;
        let name = |text: &str| {
            let labels = text.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
            labels.chain([0]).collect::<Vec<u8>>()
        };
        let mut packet = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut packet) {
            let asked = &packet[12..count];
            let end = asked.iter().position(|byte| *byte == 0).unwrap() + 1;
            let kind = u16::from_be_bytes([asked[end], asked[end + 1]]);
            let is = |text: &str| asked[..end].eq_ignore_ascii_case(&name(text));
            let text = b"authSource=admin";
            let data = match kind {
                SRV if is("_mongodb._tcp.db.pool.test") => {
                    asked_for_hosts.fetch_add(1, Ordering::SeqCst);
                    Some([&[0, 0, 0, 0][..], &port.to_be_bytes(), &name("node.pool.test")].concat())
                }
                TXT if is("db.pool.test") => Some([&[text.len() as u8][..], text].concat()),
                A if is("node.pool.test") => Some(vec![127, 0, 0, 1]),
                _ => None,
            };
            let known = data.is_some() || is("node.pool.test");
            let mut answer = packet[..2].to_vec();
            answer.extend([0x85, if known { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(data.is_some()), 0, 0, 0, 0]);
            answer.extend(&asked[..end + 4]);
            if let Some(data) = data {
                answer.extend([0xC0, 12]);
                answer.extend(kind.to_be_bytes());
                answer.extend([0, 1, 0, 0, 0, 60]);
                answer.extend((data.len() as u16).to_be_bytes());
                answer.extend(data);
            }
            socket.send_to(&answer, from).unwrap();
        }
    }
}
