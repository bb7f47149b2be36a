//! Messages in flight: each has a confirm that is awaited, and may be returned.
//!
//! The driver attaches a return to whichever confirm comes at the time. So an `InFlight` collects the returns of all
//! its confirms, and compares contents to tell which message was returned.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use lapin::Confirmation;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use parking_lot::Mutex;

use crate::base::error::{Error, Source};
use crate::kinds::rabbitmq::channel::ChannelGuard;
use crate::kinds::rabbitmq::errors::{CallError, operation};
use crate::kinds::rabbitmq::generation::Generation;
use crate::kinds::rabbitmq::message::{Message, Published};
use crate::kinds::rabbitmq::topology::Topology;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::work::Work;

impl ChannelGuard {
    /// Sends these messages, all at once, except for those that cannot be sent. An error means that none was sent.
    pub(super) async fn send(
        &mut self,
        topology: &Mutex<Topology>,
        messages: &Arc<Vec<Message>>,
    ) -> Result<Sent, Error> {
        let generation = &self.generation;
        let address = |message: &Message| {
            let action = || message.action();
            if let Some(problem) = &message.unfit {
                return Err(operation(&generation.link, &action(), problem.as_str()));
            }
            if message.properties.headers().is_some() {
                generation.fits_header(&action(), &message.properties)?;
            }
            let key = match message.exchange.as_str() {
                "" => Cow::Owned(topology.lock().current_name(&message.routing_key)),
                _ => Cow::Borrowed(message.routing_key.as_str()),
            };
            let short = |name: &str| ShortString::try_new(name);
            let address = short(&message.exchange).and_then(|exchange| Ok((exchange, short(&key)?)));
            address.map_err(|error| operation(&generation.link, &action(), error))
        };
        let addressed: Vec<_> = messages.iter().map(address).collect();
        generation.unblocked().await?;
        if !generation.is_alive() {
            return Err(generation.was_cut());
        }
        self.begin();
        let generation = Arc::clone(&self.generation);
        let part =
            Arc::new(BatchPart { channel: Arc::clone(&self.channel), messages: Arc::clone(messages), addressed });
        let mut sent = Sent { confirms: Vec::with_capacity(messages.len()), returned: Vec::new(), part, generation };
        for index in 0..messages.len() {
            sent.confirms.push(match &sent.part.addressed[index] {
                Ok(address) => {
                    let busy = sent.generation.link.busy(Work::Confirm);
                    let answer = Box::pin(Arc::clone(&sent.part).publish(index, address.clone()));
                    Confirm::Pending { answer, busy }
                }
                Err(error) => Confirm::Untaken(error.clone()),
            });
        }
        // The first poll of a publish queues its frames. So the messages leave in this order, and none waits for
        // another.
        sent.look();
        Ok(sent)
    }

    /// Waits for the results of the oldest part, and not for those sent after it. Once a message has no answer, the
    /// channel is unfit, and this waits for no message in flight any longer.
    pub(super) async fn settle(&mut self, flight: &mut InFlight) -> Vec<Result<Published, Error>> {
        let Some(mut oldest) = flight.sent.pop_front() else { return Vec::new() };
        if flight.why.is_none()
            && let Err(error) = oldest.answered().await
        {
            flight.why = Some(flight.why_unanswered(&mut oldest, error));
        }
        oldest.look();
        flight.returned.append(&mut oldest.returned);
        // A return may have come with the confirm of a later message.
        for later in &mut flight.sent {
            later.look();
            flight.returned.append(&mut later.returned);
        }
        if flight.why.is_none() && flight.sent.is_empty() {
            self.done();
        }
        oldest.results(&mut flight.returned, flight.why.as_ref())
    }
}

/// The messages that were sent on one channel and are not settled, the oldest first.
pub(super) struct InFlight {
    sent: VecDeque<Sent>,
    /// The returns whose messages are not settled. The driver attaches returns to confirms in the order in which both
    /// happen to come, so the return of one message may come with the confirm of another. No return comes after its own
    /// confirm.
    returned: Vec<BasicReturnMessage>,
    /// The reason why the remaining messages have no answer. `None` as long as all have one.
    why: Option<Source>,
}

impl From<Sent> for InFlight {
    fn from(sent: Sent) -> Self {
        InFlight { sent: [sent].into(), returned: Vec::new(), why: None }
    }
}

impl InFlight {
    pub(super) fn push(&mut self, sent: Sent) {
        self.sent.push_back(sent);
    }

    /// The reason why there is no answer. If the broker refused a message, this also finds out which one it refused.
    fn why_unanswered(&mut self, oldest: &mut Sent, error: CallError) -> Source {
        let generation = Arc::clone(&oldest.generation);
        let refusal = match error {
            CallError::Driver(error) if error.is_amqp_soft_error() => error,
            error => return Arc::new(error.into_error(&generation, "awaiting the confirm")),
        };
        let said = refusal.to_string();
        let source = Source::from(generation.config.redacted(refusal));
        let mut unanswered = Vec::new();
        for sent in std::iter::once(oldest).chain(&mut self.sent) {
            sent.look();
            let pairs = sent.confirms.iter_mut().zip(sent.part.messages.iter());
            unanswered.extend(pairs.filter(|(confirm, _)| confirm.is_unanswered()));
        }
        // The refusal may fit several messages. Then it is not known which of them the broker took before it refused
        // one.
        let mut meant = (0..unanswered.len()).filter(|index| unanswered[*index].1.is_meant_by(&said));
        let refused = match (meant.next(), meant.next(), unanswered.len()) {
            (Some(index), None, _) => index,
            (_, _, 1) => 0,
            _ => return source,
        };
        // The broker takes the messages of a channel in their order, and none after one that it refuses.
        for (index, (confirm, message)) in unanswered.into_iter().enumerate().skip(refused) {
            let not_taken = if index == refused { "" } else { " (it was not taken)" };
            let (resource, action) = (Arc::clone(generation.link.name()), message.action() + not_taken);
            *confirm = Confirm::Untaken(Error::Operation { resource, action, source: Arc::clone(&source) });
        }
        source
    }

    /// Whether a message has no answer, and never will.
    pub(super) fn is_lost(&self) -> bool {
        self.why.is_some()
    }
}

/// Messages that were sent together, and the answers that have come.
pub(super) struct Sent {
    generation: Arc<Generation>,
    part: Arc<BatchPart>,
    confirms: Vec<Confirm>,
    /// The returns that came with these confirms, of whichever message.
    returned: Vec<BasicReturnMessage>,
}

impl Sent {
    /// Takes the answers that have come.
    fn look(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for confirm in &mut self.confirms {
            // The waker wakes nobody: a task that waits for one confirm must not run for each of the others.
            let _ = confirm.poll(&mut context, &mut self.returned);
        }
    }

    /// Waits until all are answered. The last one is awaited first, because most others are answered by then.
    async fn answered(&mut self) -> Result<(), CallError> {
        let mut unsent = None;
        for index in (0..self.confirms.len()).rev() {
            while let Confirm::Pending { .. } = self.confirms[index] {
                let pending = self.pending();
                let (confirm, returned) = (&mut self.confirms[index], &mut self.returned);
                let awaited = poll_fn(|cx| confirm.poll(cx, returned).map(Ok));
                let limit = self.generation.config.confirm_timeout;
                let late = self.generation.within(limit, "a publish", awaited).await;
                self.look();
                // The limit begins anew with each confirm that comes.
                if let Err(late) = late
                    && self.pending() == pending
                {
                    return Err(match late {
                        CallError::Ours(error) => CallError::Ours(self.generation.link.told(error)),
                        late => late,
                    });
                }
            }
            match &self.confirms[index] {
                Confirm::Failed(error) if error.is_amqp_soft_error() => return Err(CallError::Driver(error.clone())),
                // The broker may have refused an earlier message while these were being sent.
                Confirm::Failed(error) => unsent = Some(error.clone()),
                _ => {}
            }
        }
        unsent.map_or(Ok(()), |error| Err(CallError::Driver(error)))
    }

    fn pending(&self) -> usize {
        self.confirms.iter().filter(|confirm| matches!(confirm, Confirm::Pending { .. })).count()
    }

    /// The result of each message. Takes the returns of these messages out of `returned`.
    fn results(self, returned: &mut Vec<BasicReturnMessage>, why: Option<&Source>) -> Vec<Result<Published, Error>> {
        let BatchPart { messages, addressed, .. } = &*self.part;
        let answers = messages.iter().zip(self.confirms);
        let results = answers.map(|(message, confirm)| match (confirm, why) {
            (Confirm::Acked, _) => Ok(Published::Confirmed),
            (Confirm::Nacked, _) => Ok(Published::Nacked),
            (Confirm::Untaken(error), _) => Err(error),
            (_, None) => Err(self.generation.was_cut()),
            (_, Some(why)) => Err(self.generation.link.outcome_unknown(message.action(), Arc::clone(why))),
        });
        let mut results: Vec<_> = results.collect();
        returned.retain(|back| {
            let fits = |index: &usize| {
                let message = &messages[*index];
                message.mandatory
                    && matches!(results[*index], Ok(Published::Confirmed))
                    && matches!(&addressed[*index], Ok((to, key)) if (to, key) == (&back.exchange, &back.routing_key))
                    && back.data == message.payload
            };
            let exact = |index: &usize| messages[*index].properties == back.properties;
            let all = || (0..messages.len()).filter(fits);
            let whose = all().find(exact).or_else(|| all().next());
            if let Some(index) = whose {
                results[index] = Ok(Published::Returned { code: back.reply_code, reason: back.reply_text.to_string() });
            }
            whose.is_none()
        });
        results
    }
}

struct BatchPart {
    channel: Arc<lapin::Channel>,
    messages: Arc<Vec<Message>>,
    /// The exchange and the key of each message, or the error of one that cannot be sent.
    addressed: Vec<Result<(ShortString, ShortString), Error>>,
}

impl BatchPart {
    async fn publish(
        self: Arc<Self>,
        index: usize,
        (exchange, key): (ShortString, ShortString),
    ) -> lapin::Result<Confirmation> {
        let message = &self.messages[index];
        let options = BasicPublishOptions { mandatory: message.mandatory, ..BasicPublishOptions::default() };
        let properties = message.properties.clone();
        self.channel.basic_publish(exchange, key, options, &message.payload, properties).await?.await
    }
}

/// A publish whose answer is awaited, or has come.
enum Confirm {
    Pending {
        answer: Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>,
        busy: Busy,
    },
    Acked,
    Nacked,
    /// The message cannot be sent, or the broker did not take it.
    Untaken(Error),
    Failed(lapin::Error),
}

impl Confirm {
    fn is_unanswered(&self) -> bool {
        matches!(self, Confirm::Pending { .. } | Confirm::Failed(_))
    }

    fn poll(&mut self, cx: &mut Context<'_>, returned: &mut Vec<BasicReturnMessage>) -> Poll<()> {
        if let Confirm::Pending { answer, busy } = self {
            let answer = ready!(answer.as_mut().poll(cx));
            busy.finish(answer.is_ok());
            *self = match answer {
                Ok(Confirmation::Nack(back)) => {
                    returned.extend(back);
                    Confirm::Nacked
                }
                Ok(Confirmation::Ack(back)) => {
                    returned.extend(back);
                    Confirm::Acked
                }
                // The channels of the verbs always have confirms on.
                Ok(Confirmation::NotRequested) => Confirm::Failed(io::Error::from(io::ErrorKind::Unsupported).into()),
                Err(error) => Confirm::Failed(error),
            };
        }
        Poll::Ready(())
    }
}
