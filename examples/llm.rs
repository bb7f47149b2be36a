//! Chats by `async-openai`, whose requests go through the pool: they are counted, limited in number and time, and end
//! with an error once closing has no more time for them. Then the same by the pool's own verbs.
//!
//! Both read `OPENAI_API_KEY` and `OPENAI_BASE_URL`, and the pool reads `OPENAI_MODEL` too.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::middleware::HttpRequestFactory;
use async_openai::types::chat::{ChatCompletionRequestUserMessage, CreateChatCompletionRequestArgs};
use futures_util::StreamExt as _;
use resource_pool::{ChatRequest, Lease, Llm, ResourcePool, reqwest};

#[resource_pool::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::var("OPENAI_MODEL").unwrap_or_else(|_| "gpt-4o-mini".to_owned());
    let llm: Lease<Llm> = ResourcePool::global().llm().await?;

    // `Client::new` would make a client of HTTP of its own.
    let client = Client::build(llm.raw_client()?, OpenAIConfig::new()).with_http_service(ByPool(llm.clone()));
    let question = ChatCompletionRequestUserMessage::from("Is 000001 a bank?");
    let request = CreateChatCompletionRequestArgs::default().model(&*model).messages([question.into()]).build()?;
    let answer = client.chat().create(request.clone()).await?;
    let text = answer.choices.into_iter().find_map(|choice| choice.message.content);
    println!("async-openai: {}", text.unwrap_or_default());
    let mut stream = client.chat().create_stream(request).await?;
    let mut parts = Vec::new();
    while let Some(part) = stream.next().await {
        parts.extend(part?.choices.into_iter().filter_map(|choice| choice.delta.content));
    }
    println!("async-openai, streamed: {}", parts.concat());

    let answer = llm.chat(ChatRequest::user("Is 000001 a bank?").model(&*model)).await?;
    println!("the pool: {}", answer.text());
    Ok(())
}

/// Sends the requests of `async-openai` through the pool.
#[derive(Clone)]
struct ByPool(Llm);

impl tower_service::Service<HttpRequestFactory> for ByPool {
    type Response = reqwest::Response;
    type Error = OpenAIError;
    type Future = Pin<Box<dyn Future<Output = Result<reqwest::Response, OpenAIError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), OpenAIError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequestFactory) -> Self::Future {
        let llm = self.0.clone();
        Box::pin(async move {
            let sent = llm.execute(request.build().await?).await;
            sent.map_err(|error| OpenAIError::from(Box::<dyn Error + Send + Sync>::from(error)))
        })
    }
}
