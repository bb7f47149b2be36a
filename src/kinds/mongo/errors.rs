//! The driver's errors: the failure that each one is, its text without passwords, and the reason why no server can be
//! reached.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use mongodb::error::{Error as DriverError, ErrorKind};
use mongodb::options::{ClientOptions, ServerAddress, Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::base::error::{BoxError, Failure, Worded, is_own_trouble, redacted};
use crate::base::runtime::within;
use crate::base::secret::{Secret, SecretFile};
use crate::kinds::mongo::hosts::Hosts;
use crate::kinds::mongo::resource::MongoResource;
use crate::net::tls;

impl MongoResource {
    /// A failure to connect, permanent where no further attempt can mend it.
    pub(super) fn failure(&self, error: DriverError) -> Failure {
        let permanent = match &*error.kind {
            ErrorKind::InvalidArgument { .. }
            | ErrorKind::InvalidTlsConfig { .. }
            | ErrorKind::IncompatibleServer { .. } => true,
            // A refused login may pass if a file has the password, because the file may just be replaced.
            ErrorKind::Authentication { .. } if self.config.password_file.is_some() => false,
            ErrorKind::Authentication { .. } => code(&error).is_none_or(|code| REFUSED_FOR_GOOD.contains(&code)),
            ErrorKind::Command(refused) => REFUSED_FOR_GOOD.contains(&refused.code),
            _ => false,
        };
        let source = self.told(error);
        if permanent { Failure::permanent(source) } else { Failure::transient(source) }
    }

    /// The failure of a ping, by the proof of its error: the server is silent, it refuses, it limits this user, or it
    /// was not asked.
    pub(super) fn verdict(&self, error: DriverError) -> Failure {
        let limits = matches!(*error.kind, ErrorKind::Authentication { .. })
            || code(&error).is_some_and(|code| REFUSED_FOR_GOOD.contains(&code));
        match (is_silence(&error), is_own(&error)) {
            (_, true) => Failure::unasked(self.told(error)),
            (true, false) => Failure::transient(self.told(error)),
            (false, false) if limits => Failure::limited(self.told(error)),
            (false, false) => Failure::refused(self.told(error)),
        }
    }

    /// The reason why no server can be reached, with the remedy where TLS is the reason.
    pub(super) async fn unreachable(&self, options: &ClientOptions, error: DriverError) -> Failure {
        let ErrorKind::Io(io) = &*error.kind else {
            return if is_alien(&error) { not_mongodb("something else", error) } else { self.failure(error) };
        };
        let hung_up = matches!(io.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
        if matches!(options.tls, Some(Tls::Enabled(_))) {
            if let Some(failure) = tls::failure(io) {
                let words = Worded::new(failure.to_string(), error);
                return Failure::transient(words).with_permanent(failure.is_permanent());
            }
        } else if let (true, [ServerAddress::Tcp { host, port }, ..]) =
            (hung_up || io.kind() == io::ErrorKind::TimedOut, &options.hosts[..])
        {
            let (host, port) = (host.trim_matches(['[', ']']), port.unwrap_or(27017));
            if let Some(what) = speaks(host, port).await {
                return not_mongodb(what, error);
            }
            if hung_up {
                return tls::or_wanted(self.failure(error), host, port, "add tls=true to the URI").await;
            }
        }
        self.failure(error)
    }

    /// The driver's error, or a note in its place if the server's words in it contain a password.
    pub(super) fn told(&self, error: DriverError) -> BoxError {
        // The driver itself writes the text of these kinds. The text of all other kinds comes from the server.
        let told = !matches!(
            *error.kind,
            ErrorKind::Io(_)
                | ErrorKind::ServerSelection { .. }
                | ErrorKind::ConnectionPoolCleared { .. }
                | ErrorKind::InvalidArgument { .. }
                | ErrorKind::InvalidTlsConfig { .. }
        );
        let by_file = self.config.password_file.as_ref().map(SecretFile::recent).unwrap_or_default();
        let secrets: Vec<_> = self.secrets.iter().chain(&by_file).map(Secret::expose).collect();
        let text = words(&error);
        let user = match &self.hosts {
            Hosts::Known(options) => options.credential.as_ref().and_then(|credential| credential.username.as_deref()),
            Hosts::Srv { .. } => self.config.user.as_deref(),
        };
        match redacted(error, told, &secrets, &[user.unwrap_or_default(), &self.config.database])
            .downcast::<DriverError>()
        {
            Ok(error) => Worded::new(text, error).into(),
            Err(withheld) => withheld,
        }
    }
}

/// The texts of the driver's error and its causes, without the labels and the replies that the driver puts around them.
pub(super) fn words(error: &DriverError) -> String {
    let kind = error.kind.to_string();
    match cause(error) {
        Some(cause) => format!("{}: {}", kind.trim_end_matches('.'), words(cause)),
        None => kind,
    }
}

/// Whether the error means that no server answered.
pub(super) fn is_silence(error: &DriverError) -> bool {
    use ErrorKind::{ConnectionPoolCleared, DnsResolve, Io, ServerSelection};
    matches!(*error.kind, Io(_) | ServerSelection { .. } | ConnectionPoolCleared { .. } | DnsResolve { .. })
}

/// Whether this process lacks something, such as a descriptor.
pub(super) fn is_own(error: &DriverError) -> bool {
    matches!(&*error.kind, ErrorKind::Io(io) if is_own_trouble(&**io))
}

fn cause(error: &DriverError) -> Option<&DriverError> {
    error.source()?.downcast_ref::<Box<DriverError>>().map(|cause| &**cause)
}

/// Whether the answer came from something else than a MongoDB.
pub(super) fn is_alien(error: &DriverError) -> bool {
    matches!(*error.kind, ErrorKind::InvalidResponse { .. })
}

/// The codes of refusals that no further attempt mends: `UserNotFound`, `Unauthorized`, `AuthenticationFailed`,
/// `APIVersionError`, `APIStrictError`, `MechanismUnavailable`, `AtlasError` for a wrong login.
const REFUSED_FOR_GOOD: [i32; 7] = [11, 13, 18, 322, 323, 334, 8000];

/// The code in the server's answer. `None` if the server answered none.
fn code(error: &DriverError) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(answer) => Some(answer.code),
        _ => code(cause(error)?),
    }
}

fn not_mongodb(what: &str, error: DriverError) -> Failure {
    let text = format!("{what} answers there instead of MongoDB: correct host and port ({})", words(&error));
    Failure::permanent(Worded::new(text, error))
}

/// The protocol of a server that is not a MongoDB. The request ends with a line end, because many servers wait for one,
/// and a client of MongoDB never sends it.
async fn speaks(host: &str, port: u16) -> Option<&'static str> {
    // This only explains a failure that has happened already, so it may not delay that failure for longer.
    const LIMIT: Duration = Duration::from_millis(200);
    let answer = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut start = [0; 4];
        stream.read_exact(&mut start).await?;
        io::Result::Ok(match &start {
            b"HTTP" => {
                let mut page = String::new();
                stream.take(1024).read_to_string(&mut page).await?;
                // A MongoDB answers this request with a page that contains its name.
                (!page.contains("MongoDB")).then_some("HTTP")
            }
            b"AMQP" => Some("AMQP"),
            [b'-', ..] => Some("a Redis"),
            _ => None,
        })
    };
    within(LIMIT, answer).await.ok()?.ok()?
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{doc, from_document};
    use mongodb::error::{CommandError, ErrorKind};

    use crate::base::secret::SecretFile;
    use crate::kinds::mongo::config::MongoConfig;
    use crate::lifecycle::kind::KindConfig;

    #[test]
    fn a_password_that_the_file_had_before_is_withheld() {
        let mut resource = MongoConfig::default().resource("mongo").unwrap();
        resource.config.password_file = Some(SecretFile::that_had(&["first", "second", "third"]));
        let told = |words: &str| {
            let error = from_document::<CommandError>(doc! { "code": 1, "codeName": "Odd", "errmsg": words }).unwrap();
            resource.told(ErrorKind::Command(error).into()).to_string()
        };
        assert!(told("no 'first'").contains("withheld"));
        assert!(told("no 'second'").contains("withheld"));
        assert!(told("no 'fourth'").contains("fourth"));
    }
}
