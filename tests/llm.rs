//! The language model against a real server of HTTP that speaks OpenAI's protocol.

#![cfg(feature = "llm")]
#![allow(missing_docs)]

mod common;
#[cfg(feature = "macros")]
#[path = "common/example.rs"]
mod example;
#[path = "common/web.rs"]
mod web;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use common::{Stopwatch, Within, eventually, unhurried};
use futures_util::StreamExt as _;
use resource_pool::config::{LlmConfig, Options};
use resource_pool::{
    ChatMessage, ChatRequest, ChatStream, Error, Health, HttpStatusError, Phase, ResourcePool, State, Usage, Work,
    blocking,
};
use serde_json::{Value, json};
use services::{BlackHole, Proxy};
use web::{Ending, Gate, WebServer, body};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);
/// The limit for a call to a server that stopped answering.
const FROZEN: Duration = Duration::from_secs(5);
const KEY: &str = "sk-s3cret-0123456789";

const ONE: &str =
    "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"one,\"}}]}\n\n";
const TWO: &str = "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"two\"}}]}\r\n\r\n";
const LAST: &str = "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"total_tokens\":7}}\n\n";
/// The first part as servers send it that have a reason in each.
const UNREASONED: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"one,\"},\"finish_reason\":\"\"}]}\n\n";
/// Parts of a second choice.
const OTHER: &str = "data: {\"choices\":[{\"index\":1,\"delta\":{}}]}\n\n";
const OTHER_LAST: &str = "data: {\"choices\":[{\"index\":1,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n";

fn pool_of(config: LlmConfig, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap()
}

fn pool(config: LlmConfig) -> ResourcePool {
    pool_of(config, unhurried())
}

fn config(server: &WebServer) -> LlmConfig {
    LlmConfig::url(server.url() + "/v1").api_key(KEY).model("small")
}

fn usage(pool: &ResourcePool) -> Usage {
    pool.status().resource("llm").unwrap().usage
}

/// A server that answers each chat by this.
fn answering<R, F>(answer: F) -> WebServer
where
    R: IntoResponse + Send + 'static,
    F: Fn() -> R + Clone + Send + Sync + 'static,
{
    WebServer::start(Router::new().route(
        "/v1/chat/completions",
        post(move || {
            let answer = answer();
            async move { answer }
        }),
    ))
}

/// A server that streams these events.
fn streaming(parts: &'static [&'static str], ending: Ending) -> WebServer {
    answering(move || body(parts, ending.clone()))
}

fn whole(text: &str) -> Value {
    json!({
        "id": "1", "model": "small-7", "created": 7,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    })
}

/// The text of a stream, and the error that it ends with.
async fn read(mut stream: ChatStream) -> (String, Option<Error>) {
    let mut text = String::new();
    while let Some(part) = stream.next().within(SOON).await {
        match part {
            Ok(part) => text.push_str(part.text()),
            Err(error) => {
                assert!(stream.next().await.is_none(), "nothing comes after an error");
                return (text, Some(error));
            }
        }
    }
    (text, None)
}

fn status(error: &Error) -> HttpStatusError {
    let Error::Operation { source, .. } = error else { panic!("{error:?}") };
    source.downcast_ref::<HttpStatusError>().unwrap_or_else(|| panic!("{error:?}")).clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_is_asked_with_the_key_and_answered_as_a_whole() {
    let server = WebServer::start(Router::new().route(
        "/v1/chat/completions",
        post(async |request: Request| {
            let key = request.headers()["authorization"].to_str().unwrap().to_owned();
            let team = request.headers()["openai-organization"].to_str().unwrap().to_owned();
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            let asked: Value = serde_json::from_slice(&body).unwrap();
            axum::Json(whole(&json!([key, team, asked]).to_string()))
        }),
    ));
    let pool = pool(config(&server).header("OpenAI-Organization", "desk"));
    let llm = pool.llm().await.unwrap();
    let chat = ChatRequest::user("is it a bank?").system("one word").set("temperature", 0);
    let chat = chat.message(ChatMessage::assistant("which?"));
    let answer = llm.chat(chat).within(SOON).await.unwrap();
    let [key, team, asked]: [Value; 3] = serde_json::from_str(answer.text()).unwrap();
    assert_eq!((key, team), (json!(format!("Bearer {KEY}")), json!("desk")));
    assert_eq!(
        asked,
        json!({
            "model": "small", "temperature": 0,
            "messages": [
                {"role": "system", "content": "one word"},
                {"role": "user", "content": "is it a bank?"},
                {"role": "assistant", "content": "which?"},
            ]
        })
    );
    assert_eq!((&*answer.model, answer.choices[0].finish_reason.as_deref()), ("small-7", Some("stop")));
    assert_eq!(answer.usage.as_ref().map(|usage| usage.total_tokens), Some(7));
    assert_eq!(answer.more["created"], 7, "all else is kept");
    let named = llm.chat(ChatRequest::user("x").model("large")).await.unwrap();
    assert!(named.text().contains("\"large\""), "{}", named.text());
    let report = pool.close_all().within(SOON).await;
    assert_eq!(report.step("llm").unwrap().phase, Phase::HttpClients);
    assert!(report.all_closed(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_gives_its_parts_and_ends_whole() {
    let cases: [&'static [&'static str]; 9] = [
        &[ONE, TWO, LAST, DONE],
        // Servers that send no `[DONE]`, comments, usage alone, and pieces that are no whole events.
        &[ONE, TWO, LAST],
        &[": ping\n\n", ONE, TWO, LAST, USAGE, DONE],
        // Azure's verdict on the prompt, and two choices that come in turns.
        &["data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n", ONE, OTHER, TWO, OTHER_LAST, LAST, DONE],
        &["data: {\"choices\":[{\"delta\":{\"content\":\"one", ",\"}}]}\n", "\n", TWO, LAST, DONE],
        // No empty line behind the last event, and a comment there.
        &[ONE, TWO, LAST, "data: [DONE]"],
        &[ONE, TWO, LAST, "data: [DONE]\n"],
        &[ONE, TWO, LAST, ": bye"],
        // A reason that is empty is none, and events without choices do no harm.
        &["data: {\"choices\":[]}\n\n", UNREASONED, "data: {\"usage\":{\"total_tokens\":1}}\n\n", TWO, LAST, DONE],
    ];
    for parts in cases {
        let server = streaming(parts, Ending::Whole);
        let pool = pool(config(&server));
        let llm = pool.llm().await.unwrap();
        let (text, error) = read(llm.chat_stream(ChatRequest::user("x")).within(SOON).await.unwrap()).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(text, "one,two");
        assert_eq!(usage(&pool).in_use, Some(0));
    }
    // A server that goes on after `[DONE]` delays nobody.
    let server = streaming(&[ONE, TWO, LAST, DONE], Ending::Stalled);
    let pool = pool(config(&server));
    let stream = pool.llm().await.unwrap().chat_stream(ChatRequest::user("x")).within(SOON).await.unwrap();
    let parts: Vec<_> = stream.map(|part| part.unwrap().text().to_owned()).collect().within(SOON).await;
    assert_eq!(parts, ["one,", "two", ""]);
    assert_eq!(usage(&pool).in_use, Some(0));
}

#[test]
fn threads_have_the_same_verbs() {
    let server = WebServer::start(Router::new().route(
        "/v1/chat/completions",
        post(async |request: axum::Json<Value>| -> Response {
            if request["stream"] == true {
                return body(&[ONE, TWO, LAST, DONE], Ending::Whole).into_response();
            }
            axum::Json(whole("fine")).into_response()
        }),
    ));
    let pool: blocking::ResourcePool = blocking::ResourcePool::builder()
        .environment([("", ""); 0])
        .options(unhurried())
        .resource(config(&server))
        .build()
        .unwrap();
    let llm = pool.llm().unwrap();
    assert_eq!(llm.chat(ChatRequest::user("x")).unwrap().text(), "fine");
    let parts: Result<Vec<_>, Error> = llm.chat_stream(ChatRequest::user("x")).unwrap().collect();
    assert_eq!(parts.unwrap().iter().map(|part| part.text()).collect::<String>(), "one,two");
    // A thread that must not block is told so once.
    let mut stream = llm.chat_stream(ChatRequest::user("x")).unwrap();
    let alone = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let told: Vec<_> = alone.block_on(async { stream.by_ref().collect() });
    assert!(matches!(told[..], [Err(Error::InAsyncContext { .. })]), "{told:?}");
    let other = pool.llm_with("other", config(&server)).unwrap();
    assert_eq!(other.chat(ChatRequest::user("x")).unwrap().text(), "fine");
    drop((llm, other));
    assert!(pool.close_all().unwrap().all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_not_whole_ends_with_an_error() {
    // It ends in good order, but neither with `[DONE]` nor with a reason.
    let server = streaming(&[ONE, TWO], Ending::Whole);
    let pool = pool(config(&server));
    let ask = async |name: &str, server: &WebServer| {
        let config = config(server).max_body(4096);
        // A busy machine may need longer for the others.
        let config = if name == "stalled" { config.read_timeout(Duration::from_secs(1)) } else { config };
        let llm = pool.llm_with(name, config).await.unwrap();
        read(llm.chat_stream(ChatRequest::user("x")).within(SOON).await.unwrap()).await
    };
    let (text, error) = ask("cut-short", &server).await;
    let error = error.unwrap();
    assert!(text == "one,two" && matches!(error, Error::Lost { .. }), "{text} {error:?}");
    assert!(error.to_string().contains("before each choice had its finish_reason"), "{error}");
    // Neither `[DONE]` nor the end of one choice is the end of all, and a piece of an event is no event.
    const PIECE: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"more\"";
    let too_early: [(&str, &'static [&'static str]); 6] = [
        ("an-empty-reason", &[UNREASONED, TWO, DONE]),
        ("done-alone", &[ONE, TWO, DONE]),
        ("nothing", &[DONE]),
        ("one-of-two", &[ONE, OTHER, TWO, LAST, DONE]),
        ("one-of-two-without-done", &[ONE, OTHER, TWO, LAST]),
        ("a-piece", &[ONE, TWO, LAST, PIECE]),
    ];
    for (name, parts) in too_early {
        let (_, error) = ask(name, &streaming(parts, Ending::Whole)).await;
        assert!(matches!(error, Some(Error::Lost { .. })), "{name}: {error:?}");
    }
    // An event that is none of a chat.
    for (name, event) in [("empty", "data: {}\n\n"), ("no-list", "data: {\"choices\":null}\n\n")] {
        let server = answering(move || event.to_owned() + LAST + DONE);
        let (_, error) = ask(name, &server).await;
        assert!(matches!(error, Some(Error::Operation { .. })), "{name}: {error:?}");
    }
    // Each of two answers that a chat asks for counts.
    let server = streaming(&[ONE, TWO, LAST, DONE], Ending::Whole);
    let llm = pool.llm_with("two", config(&server)).await.unwrap();
    let (_, error) = read(llm.chat_stream(ChatRequest::user("x").set("n", 2)).within(SOON).await.unwrap()).await;
    assert!(matches!(error, Some(Error::Lost { .. })), "{error:?}");
    let (text, error) = ask("broken-off", &streaming(&[ONE], Ending::BrokenOff)).await;
    assert!(text == "one," && matches!(error, Some(Error::Lost { .. })), "{text} {error:?}");
    let stopwatch = Stopwatch::start();
    let (text, error) = ask("stalled", &streaming(&[ONE], Ending::Stalled)).await;
    assert!(text == "one," && matches!(error, Some(Error::Timeout(_))), "{text} {error:?}");
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    // The server says so itself, and quotes the key.
    const TOLD: &str = "data: {\"error\":{\"message\":\"overloaded\"}}\n\n";
    let (text, error) = ask("told", &streaming(&[ONE, TOLD, TWO], Ending::Whole)).await;
    let error = error.unwrap();
    assert!(text == "one," && error.to_string().contains("overloaded"), "{text} {error:?}");
    const QUOTED: &str = "data: {\"error\":{\"message\":\"bad sk-s3cret-0123456789\"}}\n\n";
    let (_, error) = ask("quoted", &streaming(&[QUOTED], Ending::Whole)).await;
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    let (_, error) = ask("foreign", &streaming(&["data: hello\n\n"], Ending::Whole)).await;
    assert!(matches!(error, Some(Error::Operation { .. })), "{error:?}");
    let endless = answering(|| format!("data: {}", "x".repeat(10_000)));
    let (_, error) = ask("endless", &endless).await;
    assert!(error.unwrap().to_string().contains("over 4096 bytes"));
    // Nothing of this is in flight any more.
    for resource in &pool.status().resources {
        assert_eq!(resource.usage.in_use.unwrap_or(0), 0, "{}", resource.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_none_is_an_error() {
    let pool = pool(LlmConfig::url("http://127.0.0.1:1"));
    for (name, answer, words) in [
        ("told", r#"{"error":{"message":"overloaded"}}"#, "overloaded"),
        ("told-briefly", r#"{"error":"overloaded"}"#, "overloaded"),
        ("told-the-key", r#"{"error":{"message":"bad sk-s3cret-0123456789"}}"#, "withheld"),
        ("empty", "{}", "no choice"),
        ("no-choice", r#"{"model":"small","choices":[]}"#, "no choice"),
        ("foreign", "[]", ""),
    ] {
        let server = answering(move || answer);
        let llm = pool.llm_with(name, config(&server)).await.unwrap();
        let error = llm.chat(ChatRequest::user("x")).within(SOON).await.unwrap_err();
        assert!(matches!(error, Error::Operation { .. }) && error.to_string().contains(words), "{name}: {error:?}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
    // A proxy redirects to a page of its own.
    let server = answering(|| axum::response::Redirect::to("/login"));
    let llm = pool.llm_with("redirected", config(&server)).await.unwrap();
    let error = llm.chat(ChatRequest::user("x")).within(SOON).await.unwrap_err();
    assert_eq!(status(&error).status, StatusCode::SEE_OTHER, "{error}");
    // Where a stream was asked for, too.
    for (name, answer, words) in [
        ("at-once", json!({"error": {"message": "overloaded"}}), "overloaded"),
        ("as-a-whole", whole("fine"), "not by a stream"),
    ] {
        let server = answering(move || axum::Json(answer.clone()));
        let llm = pool.llm_with(name, config(&server)).await.unwrap();
        let error = llm.chat_stream(ChatRequest::user("x")).within(SOON).await.map(drop).unwrap_err();
        assert!(matches!(error, Error::Operation { .. }) && error.to_string().contains(words), "{name}: {error:?}");
    }
    // An error that is null is none.
    let mut fine = whole("fine");
    fine["error"] = Value::Null;
    let server = answering(move || axum::Json(fine.clone()));
    let llm = pool.llm_with("null", config(&server)).await.unwrap();
    assert_eq!(llm.chat(ChatRequest::user("x")).within(SOON).await.unwrap().text(), "fine");
}

/// A server whose stream drips comments for ever, so that it is never silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_never_ends_ends_by_the_operation_timeout() {
    let server = answering(|| {
        Body::from_stream(futures_util::stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, std::io::Error>(": ping\n\n"), ()))
        }))
    });
    let pool = pool(config(&server).operation_timeout(Duration::from_millis(300)));
    let llm = pool.llm().await.unwrap();
    let stopwatch = Stopwatch::start();
    let error = match llm.chat_stream(ChatRequest::user("x")).within(SOON).await {
        Ok(stream) => read(stream).await.1,
        // The machine is so busy that not even the head has come.
        Err(error) => Some(error),
    };
    assert!(matches!(error, Some(Error::Timeout(_))), "{error:?}");
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    assert_eq!(usage(&pool).in_use, Some(0));
}

/// A forked child reads nothing of a stream that its parent has, not even the parts that have come.
#[cfg(unix)]
#[test]
fn a_forked_child_leaves_streams_alone() {
    if let Some(status) = common::alone("a_forked_child_leaves_streams_alone") {
        assert!(status.success(), "{status}");
        return;
    }
    let server = answering(|| [ONE, TWO, LAST, DONE].concat());
    let pool: blocking::ResourcePool = blocking::ResourcePool::builder()
        .environment([("", ""); 0])
        .options(unhurried())
        .resource(config(&server))
        .build()
        .unwrap();
    let mut stream = pool.llm().unwrap().chat_stream(ChatRequest::user("x")).unwrap();
    assert_eq!(stream.next().unwrap().unwrap().text(), "one,");
    match fork::fork().expect("a child") {
        fork::Fork::Child => {
            let is_refused = matches!(stream.next(), Some(Err(Error::Forked))) && stream.next().is_none();
            drop(stream);
            std::process::exit(if is_refused { 0 } else { 1 });
        }
        fork::Fork::Parent(child) => {
            assert_eq!(fork::waitpid(child).expect("its status"), 0, "the child was refused");
            let rest: Result<Vec<_>, Error> = stream.collect();
            assert_eq!(rest.unwrap().iter().map(|part| part.text()).collect::<String>(), "two");
        }
    }
}

/// A server that answers this often by this status, and then well. Its second part counts the chats.
fn busy(times: usize, status: StatusCode, retry_after: Option<String>) -> (WebServer, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let server = answering(move || {
        if counted.fetch_add(1, Ordering::SeqCst) >= times {
            return axum::Json(whole("at last")).into_response();
        }
        match &retry_after {
            Some(value) => (status, [("retry-after", value.clone())], "later").into_response(),
            None => (status, "later").into_response(),
        }
    });
    (server, asked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_429_and_503_are_repeated_and_at_most_twice() {
    let pool = pool(LlmConfig::url("http://127.0.0.1:1"));
    let ask = async |name: &str, config: LlmConfig| {
        let llm = pool.llm_with(name, config).await.unwrap();
        llm.chat(ChatRequest::user("x")).within(SOON).await.map(|answer| answer.text().to_owned())
    };
    for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE] {
        let (server, asked) = busy(2, status, Some("0".to_owned()));
        assert_eq!(ask(&format!("twice-{}", status.as_u16()), config(&server)).await.unwrap(), "at last");
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }
    let (server, asked) = busy(3, StatusCode::TOO_MANY_REQUESTS, Some("0".to_owned()));
    let error = ask("thrice", config(&server)).await.unwrap_err();
    assert_eq!((self::status(&error).status.as_u16(), asked.load(Ordering::SeqCst)), (429, 3));
    let (server, asked) = busy(1, StatusCode::TOO_MANY_REQUESTS, Some("0".to_owned()));
    ask("never", config(&server).max_repeats(0)).await.unwrap_err();
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    for status in [400, 404, 500, 502, 504] {
        let (server, asked) = busy(1, StatusCode::from_u16(status).unwrap(), Some("0".to_owned()));
        let error = ask(&format!("once-{status}"), config(&server)).await.unwrap_err();
        assert_eq!((self::status(&error).status.as_u16(), asked.load(Ordering::SeqCst)), (status, 1));
    }
    // A stream that has not begun is repeated too.
    let (server, asked) = busy(1, StatusCode::SERVICE_UNAVAILABLE, Some("0".to_owned()));
    let llm = pool.llm_with("stream", config(&server)).await.unwrap();
    let error = llm.chat_stream(ChatRequest::user("x")).within(SOON).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("not by a stream"), "{error:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_after_is_honoured_within_a_limit() {
    let pool = pool(LlmConfig::url("http://127.0.0.1:1"));
    let ask = async |name: &str, config: LlmConfig| {
        let llm = pool.llm_with(name, config).await.unwrap();
        let stopwatch = Stopwatch::start();
        let answer = llm.chat(ChatRequest::user("x")).within(SOON).await.map(|answer| answer.text().to_owned());
        (answer, stopwatch.took())
    };
    let (server, _) = busy(1, StatusCode::TOO_MANY_REQUESTS, Some("1".to_owned()));
    let (answer, took) = ask("seconds", config(&server)).await;
    assert_eq!(answer.unwrap(), "at last");
    assert!(took >= Duration::from_millis(900), "{took:?}");
    // A date is told in whole seconds, so up to one of them is lost.
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    let (server, _) = busy(1, StatusCode::SERVICE_UNAVAILABLE, Some(date));
    let (answer, took) = ask("date", config(&server)).await;
    assert_eq!(answer.unwrap(), "at last");
    assert!(took >= Duration::from_millis(1000), "{took:?}");
    // Without one the wait is half a second.
    let (server, asked) = busy(1, StatusCode::TOO_MANY_REQUESTS, None);
    let (answer, took) = ask("none", config(&server)).await;
    assert_eq!((&*answer.unwrap(), asked.load(Ordering::SeqCst)), ("at last", 2));
    assert!(took >= Duration::from_millis(400), "{took:?}");
    // A server that asks for more than the limit gets no second chat, and its caller the error at once.
    let (server, asked) = busy(1, StatusCode::TOO_MANY_REQUESTS, Some("3600".to_owned()));
    let (answer, took) = ask("too-long", config(&server)).await;
    assert_eq!(status(&answer.unwrap_err()).retry_after, Some(Duration::from_secs(3600)));
    assert!(asked.load(Ordering::SeqCst) == 1 && took < Duration::from_secs(1), "{took:?}");
    let (server, asked) = busy(2, StatusCode::TOO_MANY_REQUESTS, Some("1".to_owned()));
    let (answer, _) = ask("in-all", config(&server).max_repeat_wait(Duration::from_millis(1500))).await;
    assert!(answer.is_err() && asked.load(Ordering::SeqCst) == 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_ends_the_wait_for_a_repeat() {
    let (server, asked) = busy(1, StatusCode::TOO_MANY_REQUESTS, Some("15".to_owned()));
    let mut options = unhurried();
    options.close.drain = Duration::from_millis(200);
    options.close.held = Duration::ZERO;
    let pool = pool_of(config(&server), options);
    let llm = pool.llm().await.unwrap().clone();
    let chat = tokio::spawn(async move { llm.chat(ChatRequest::user("x")).await.map(drop).unwrap_err() });
    eventually(SOON, async || (asked.load(Ordering::SeqCst) == 1 && usage(&pool).in_use == Some(0)).then_some(()))
        .await;
    let stopwatch = Stopwatch::start();
    pool.close_all().within(SOON).await;
    let error = chat.within(SOON).await.unwrap();
    assert!(error.is_closed() || matches!(error, Error::Operation { .. }), "{error:?}");
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_a_repeat_gets_the_drains_time() {
    let (server, asked) = busy(1, StatusCode::TOO_MANY_REQUESTS, Some("2".to_owned()));
    let pool = pool(config(&server));
    let llm = pool.llm().await.unwrap().clone();
    let chat = tokio::spawn(async move { llm.chat(ChatRequest::user("x")).await });
    eventually(SOON, async || (asked.load(Ordering::SeqCst) == 1 && usage(&pool).in_use == Some(0)).then_some(()))
        .await;
    let report = pool.close_all().within(SOON).await;
    assert_eq!(chat.within(SOON).await.unwrap().unwrap().text(), "at last");
    assert_eq!(report.step("llm").unwrap().finished, [(Work::Operation, 1)], "{report}");
}

#[test]
fn a_wrong_key_is_told_at_once_and_shown_nowhere() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let server = answering(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        let told = format!("{{\"error\":{{\"message\":\"Incorrect API key provided: {}****6789\"}}}}", &KEY[..9]);
        (StatusCode::UNAUTHORIZED, told)
    });
    let config = config(&server);
    let (said, log) = common::Log::during(|| {
        web::runtime().block_on(async {
            let pool = pool(config.clone());
            let llm = pool.llm().await.unwrap();
            let error = llm.chat(ChatRequest::user("x")).within(SOON).await.unwrap_err();
            assert!(error.to_string().contains("OPENAI_API_KEY") && !error.is_transient(), "{error}");
            let stream = llm.chat_stream(ChatRequest::user("x")).within(SOON).await.unwrap_err();
            format!("{error} {error:?} {stream:?} {config:?} {llm:?} {pool:?} {:?}", pool.status())
        })
    });
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    for part in ["s3cret", "6789"] {
        assert!(!said.contains(part), "{said}");
    }
    assert!(!log.contains("s3cret"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_so_many_chats_at_a_time() {
    let gate = Gate::new();
    let passing = gate.clone();
    let server = WebServer::start(Router::new().route(
        "/v1/chat/completions",
        post(move || {
            let gate = passing.clone();
            async move {
                gate.pass().await;
                axum::Json(whole("fine"))
            }
        }),
    ));
    let mut options = unhurried();
    options.acquire_timeout = Duration::from_millis(300);
    let pool = pool_of(config(&server).max_requests(1), options);
    let llm = pool.llm().await.unwrap().clone();
    let first = tokio::spawn({
        let llm = llm.clone();
        async move { llm.chat(ChatRequest::user("x")).await.map(|answer| answer.text().to_owned()) }
    });
    eventually(SOON, async || (gate.arrived() == 1).then_some(())).await;
    let error = llm.chat(ChatRequest::user("x")).within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)) && error.to_string().contains("one of 1 requests"), "{error}");
    assert_eq!((usage(&pool).max, usage(&pool).in_use, usage(&pool).waiting), (Some(1), Some(1), Some(0)));
    gate.let_through(1);
    assert_eq!(first.within(SOON).await.unwrap().unwrap(), "fine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_gets_the_drains_time_and_then_ends_with_an_error() {
    let gate = Gate::new();
    let after = gate.clone();
    let server = WebServer::start(
        Router::new()
            .route(
                "/v1/chat/completions",
                post(async move || {
                    body(&[ONE], Ending::After(after, "data: {\"choices\":[{\"delta\":{\"content\":\"two\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"))
                }),
            )
            .route("/stall/chat/completions", post(async || body(&[ONE], Ending::Stalled))),
    );
    // The first one ends within the drain.
    let pool = pool(config(&server));
    let llm = pool.llm().await.unwrap().clone();
    let mut stream = llm.chat_stream(ChatRequest::user("x")).within(SOON).await.unwrap();
    assert_eq!(stream.next().within(SOON).await.unwrap().unwrap().text(), "one,");
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close_all().await }
    });
    let is_draining = async || pool.status().resource("llm").filter(|llm| llm.state == State::Draining).map(drop);
    eventually(SOON, is_draining).await;
    gate.let_through(1);
    let (text, error) = read(stream).await;
    assert!(text == "two" && error.is_none(), "{text} {error:?}");
    let report = closing.within(SOON).await.unwrap();
    assert_eq!(report.step("llm").unwrap().finished, [(Work::Operation, 1)], "{report}");
    // The second one does not.
    let mut options = unhurried();
    options.close.drain = Duration::from_millis(200);
    options.close.held = Duration::ZERO;
    let stalling = LlmConfig::url(server.url() + "/stall").api_key(KEY).model("small");
    let pool = pool_of(stalling, options);
    let llm = pool.llm().await.unwrap().clone();
    let stream = llm.chat_stream(ChatRequest::user("x")).within(SOON).await.unwrap();
    let reading = tokio::spawn(read(stream));
    eventually(SOON, async || (usage(&pool).in_use == Some(1)).then_some(())).await;
    let stopwatch = Stopwatch::start();
    let report = pool.close_all().within(SOON).await;
    let (text, error) = reading.within(SOON).await.unwrap();
    assert!(text == "one," && matches!(error, Some(Error::Closed { .. })), "{text} {error:?}");
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    assert_eq!(report.step("llm").unwrap().unfinished, [(Work::Operation, 1)], "{report}");
    assert!(report.all_closed(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_dies_or_is_not_there_blocks_nobody() {
    let mut server = streaming(&[ONE], Ending::Stalled);
    let proxy = Proxy::start(server.port()).unwrap();
    let through =
        LlmConfig::url(format!("http://127.0.0.1:{}/v1", proxy.port())).read_timeout(Duration::from_millis(400));
    let pool = pool(through);
    let llm = pool.llm().await.unwrap();
    let mut stream = llm.chat_stream(ChatRequest::user("x")).within(SOON).await.unwrap();
    assert_eq!(stream.next().within(SOON).await.unwrap().unwrap().text(), "one,");
    proxy.freeze();
    let stopwatch = Stopwatch::start();
    assert!(matches!(stream.next().within(SOON).await, Some(Err(Error::Timeout(_)))));
    let error = llm.chat(ChatRequest::user("x")).within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    proxy.thaw();
    let mut stream = llm.chat_stream(ChatRequest::user("x")).within(SOON).await.unwrap();
    assert_eq!(stream.next().within(SOON).await.unwrap().unwrap().text(), "one,");
    tokio::task::block_in_place(|| server.kill());
    assert!(matches!(stream.next().within(SOON).await, Some(Err(Error::Lost { .. }))));
    assert!(matches!(llm.chat(ChatRequest::user("x")).within(SOON).await, Err(Error::Lost { .. })));
    tokio::task::block_in_place(|| server.restart());
    let mut stream = llm.chat_stream(ChatRequest::user("x")).within(SOON).await.unwrap();
    assert_eq!(stream.next().within(SOON).await.unwrap().unwrap().text(), "one,");
    let hole = BlackHole::start().unwrap();
    let nowhere =
        LlmConfig::url(format!("http://127.0.0.1:{}", hole.port())).connect_timeout(Duration::from_millis(300));
    let nowhere = pool.llm_with("nowhere", nowhere).await.unwrap();
    let error = nowhere.chat(ChatRequest::user("x")).within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    // The pool closes beside a frozen server.
    proxy.freeze();
    let stopwatch = Stopwatch::start();
    let report = pool.close_all_within(Duration::from_secs(2)).within(SOON).await;
    assert!(stopwatch.took() < FROZEN && report.step("llm").is_some(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_asks_for_the_models_if_wanted_and_remembers_the_answer() {
    let (asked, status) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(200)));
    let (counted, answered) = (Arc::clone(&asked), Arc::clone(&status));
    let models = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        let status = StatusCode::from_u16(u16::try_from(answered.load(Ordering::SeqCst)).unwrap()).unwrap();
        async move { (status, Body::from("{\"data\":[]}")) }
    };
    let server = WebServer::start(Router::new().route("/v1/models", get(models)));
    let mut options = unhurried();
    options.health.cache = Duration::ZERO;
    options.health.slow = SOON;
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
    let pool: ResourcePool = builder
        .resource(LlmConfig::url("http://127.0.0.1:1"))
        .named("asked", config(&server).health_check(true))
        .named("uncached", config(&server).health_check(true).health_cache(Duration::ZERO))
        .build()
        .unwrap();
    drop(pool.llm().await.unwrap());
    drop(pool.llm_named("asked").within(SOON).await.unwrap());
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    for _ in 0..3 {
        let report = pool.health_check().within(SOON).await;
        assert_eq!(report.entry("llm").unwrap().health, Health::Unknown, "{report}");
        assert_eq!(report.entry("asked").unwrap().health, Health::Pass, "{report}");
        assert_eq!(report.readiness(), Health::Pass);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "the answer is remembered");
    drop(pool.llm_named("uncached").within(SOON).await.unwrap());
    for (answer, expected) in [(200, Health::Pass), (500, Health::Fail), (401, Health::Warn), (429, Health::Warn)] {
        status.store(answer, Ordering::SeqCst);
        let report = pool.health_check().within(SOON).await;
        assert_eq!(report.entry("uncached").unwrap().health, expected, "{answer}: {report}");
    }
    // A wrong key is told by connecting, at once.
    status.store(401, Ordering::SeqCst);
    let error = pool.llm_with("wrong", config(&server).health_check(true)).within(SOON).await.map(drop).unwrap_err();
    let Error::Connect(connect) = &error else { panic!("{error:?}") };
    assert!(connect.permanent && connect.attempts == 1, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_about_the_old_key_says_nothing_about_the_new_one() {
    let models = async |request: Request| {
        let is_right = request.headers().get("authorization").is_some_and(|key| key == "Bearer right");
        if is_right { StatusCode::OK } else { StatusCode::UNAUTHORIZED }
    };
    let server = WebServer::start(Router::new().route("/v1/models", get(models)));
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("llm-turning-{}", std::process::id()));
    std::fs::write(&file, "right").unwrap();
    let mut options = unhurried();
    (options.health.cache, options.health.slow) = (Duration::ZERO, SOON);
    let config = LlmConfig::url(server.url() + "/v1").api_key_file(&file).health_check(true).health_cache(10 * SOON);
    let pool = pool_of(config, options);
    drop(pool.llm().within(SOON).await.unwrap());
    let health = async || pool.health_check().within(SOON).await.entry("llm").unwrap().health;
    assert_eq!(health().await, Health::Pass);
    std::fs::write(&file, "wrong").unwrap();
    assert_eq!(health().await, Health::Pass, "nothing has read the file again");
    pool.refresh("llm").within(SOON).await.unwrap();
    assert_eq!(health().await, Health::Warn);
    std::fs::write(&file, "right").unwrap();
    pool.refresh("llm").within(SOON).await.unwrap();
    assert_eq!(health().await, Health::Pass);
    std::fs::remove_file(file).unwrap();
}

#[test]
fn every_value_that_cannot_be_used_is_refused_and_shown_nowhere() {
    let url = || LlmConfig::url("http://h/v1");
    for (config, key, expected) in [
        (LlmConfig::url("s3cret"), "llm.base_url", "is not a URL"),
        (LlmConfig::url("ftp://s3cret"), "llm.base_url", "expected http:// or https://"),
        (LlmConfig::url("http://h/?key=s3cret"), "llm.base_url", "has a `?` or `#`"),
        (LlmConfig::url("http://me:s3cret@h"), "llm.base_url", "has a user"),
        (url().api_key("s3cret\n"), "llm.api_key", "cannot stand in an HTTP header"),
        (url().header("a b", "s3cret"), "llm.headers.a b", "is no name"),
        (url().header("x", "s3cret\0"), "llm.headers.x", "cannot stand in an HTTP header"),
        (url().api_key("x").header("Authorization", "s3cret"), "llm.headers.Authorization", "beside a login"),
        (url().connect_timeout(Duration::ZERO), "llm.connect_timeout_ms", "at least 1 ms"),
        (url().read_timeout(Duration::ZERO), "llm.read_timeout_ms", "at least 1 ms"),
        (url().max_requests(0), "llm.max_requests", "must be from 1"),
        (url().max_body(0), "llm.max_body", "must be from 1"),
        (url().keepalive(Duration::ZERO), "llm.keepalive_ms", "whole seconds"),
        (url().max_repeats(3), "llm.max_repeats", "must be from 0 to 2"),
        (url().proxy("ftp://s3cret"), "llm.proxy", "expected http:// or https://"),
        (url().api_key("x").api_key_file("/nonexistent/f"), "llm.api_key_file", "beside a password"),
        (url().api_key_file("/nonexistent/f"), "llm.api_key_file", "cannot be read"),
    ] {
        let built: Result<ResourcePool, _> =
            ResourcePool::builder().environment([("", ""); 0]).resource(config).build();
        let Err(Error::Config { key: found, problem }) = built else { panic!("{built:?}") };
        assert!(found == key && problem.contains(expected) && !problem.contains("s3cret"), "{found}: {problem}");
    }
}

#[test]
fn the_environment_has_openais_names() {
    let server = WebServer::start(Router::new().route(
        "/v1/chat/completions",
        post(async |request: Request| {
            let key = request.headers().get("authorization").map_or("none", |key| key.to_str().unwrap()).to_owned();
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            let asked: Value = serde_json::from_slice(&body).unwrap();
            axum::Json(whole(&format!("{key} {}", asked["model"])))
        }),
    ));
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("llm-key-{}", std::process::id()));
    std::fs::write(&file, "of-a-file\n").unwrap();
    let url = server.url() + "/v1";
    let answer = |variables: &[(&str, &str)], name: Option<&str>| {
        let builder = blocking::ResourcePool::builder().environment(variables.iter().copied()).options(unhurried());
        let pool: blocking::ResourcePool = builder.build().unwrap();
        let llm = name.map_or_else(|| pool.llm(), |name| pool.llm_named(name)).unwrap();
        llm.chat(ChatRequest::user("x")).unwrap().text().to_owned()
    };
    let file = file.to_str().unwrap();
    assert_eq!(
        answer(&[("OPENAI_BASE_URL", &*url), ("OPENAI_API_KEY", "k3y"), ("OPENAI_MODEL", "m")], None),
        "Bearer k3y \"m\""
    );
    assert_eq!(answer(&[("OPENAI_BASE_URL", &*url), ("OPENAI_API_KEY_FILE", file)], None), "Bearer of-a-file null");
    // The headers of the file are those of its own server.
    let text = "[llm]\nbase_url = 'http://127.0.0.1:1'\nheaders = { Authorization = 'k3y' }";
    let builder = blocking::ResourcePool::builder().environment([("OPENAI_BASE_URL", &*url)]).config_str(text);
    let pool: blocking::ResourcePool = builder.options(unhurried()).build().unwrap();
    assert_eq!(pool.llm().unwrap().chat(ChatRequest::user("x")).unwrap().text(), "none null");
    assert_eq!(answer(&[("OPENAI_BASE_URL", &*url)], None), "none null");
    let named = [("RESOURCE_POOL_LLM_DESK_BASE_URL", &*url), ("RESOURCE_POOL_LLM_DESK_API_KEY", "of-the-desk")];
    assert_eq!(answer(&named, Some("desk")), "Bearer of-the-desk null");
    let both = [("OPENAI_BASE_URL", &*url), ("OPENAI_API_KEY", "k3y"), ("OPENAI_API_KEY_FILE", file)];
    let pool: blocking::ResourcePool = blocking::ResourcePool::builder().environment(both).build().unwrap();
    let Err(Error::Config { key, problem }) = pool.llm() else { panic!("it is ambiguous") };
    assert!(key == "OPENAI_API_KEY_FILE" && problem.contains("OPENAI_API_KEY"), "{key}: {problem}");
    std::fs::remove_file(file).unwrap();
}

#[cfg(not(feature = "tls"))]
#[test]
fn without_the_feature_tls_only_the_language_model_is_refused() {
    let pool: blocking::ResourcePool = blocking::ResourcePool::builder().environment([("", ""); 0]).build().unwrap();
    let error = pool.llm().map(drop).unwrap_err();
    assert!(error.to_string().contains("llm.base_url: needs TLS") && !error.is_transient(), "{error}");
}

/// `async-openai` asks through the pool, as a whole and as a stream. Then the pool's own verbs do.
#[cfg(feature = "macros")]
#[test]
fn example_llm_asks_by_async_openai_and_by_the_pool() {
    let server = WebServer::start(Router::new().route(
        "/v1/chat/completions",
        post(async |request: Request| -> Response {
            assert_eq!(request.headers()["authorization"], format!("Bearer {KEY}"));
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            let asked: Value = serde_json::from_slice(&body).unwrap();
            if asked["stream"] == true {
                let part = |delta: Value, reason: Value| {
                    let choices = json!([{"index": 0, "delta": delta, "finish_reason": reason}]);
                    let chunk = json!({
                        "id": "1", "object": "chat.completion.chunk", "created": 7, "model": "small", "choices": choices
                    });
                    format!("data: {chunk}\n\n")
                };
                let parts = [
                    part(json!({"role": "assistant", "content": "yes, "}), Value::Null),
                    part(json!({"content": "it is"}), Value::Null),
                    part(json!({}), json!("stop")),
                ];
                return ([("content-type", "text/event-stream")], parts.concat() + DONE).into_response();
            }
            let mut answer = whole("yes");
            answer["object"] = json!("chat.completion");
            axum::Json(answer).into_response()
        }),
    ));
    let url = server.url() + "/v1";
    let variables = [("OPENAI_BASE_URL", &*url), ("OPENAI_API_KEY", KEY), ("OPENAI_MODEL", "small")];
    let example = example::Example::start("llm", &variables);
    assert_eq!(example.hear("async-openai: "), "yes");
    assert_eq!(example.hear("async-openai, streamed: "), "yes, it is");
    assert_eq!(example.hear("the pool: "), "yes");
    assert!(example.end().success());
}
