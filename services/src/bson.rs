//! Just enough BSON for the commands that set a server up.

/// A document, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Document(Vec<(String, Value)>);

/// A value of the types that those commands have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Double(f64),
    Text(String),
    Document(Document),
    Array(Vec<Value>),
    Binary(Vec<u8>),
    Bool(bool),
    Int(i32),
    Long(i64),
    /// Anything else that a server may answer.
    Other,
}

impl Document {
    pub(crate) fn new() -> Document {
        Document::default()
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> Document {
        self.0.push((key.to_string(), value.into()));
        self
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find_map(|(name, value)| (name == key).then_some(value))
    }

    pub(crate) fn first_key(&self) -> &str {
        self.0.first().map_or("", |(key, _)| key)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for (key, value) in &self.0 {
            let (kind, bytes) = value.encode();
            body.push(kind);
            body.extend(key.as_bytes());
            body.push(0);
            body.extend(bytes);
        }
        body.push(0);
        [&length(body.len() + 4)[..], &body].concat()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Document> {
        let mut reader = Reader(bytes);
        reader.document()
    }
}

impl Value {
    /// The type's number and the bytes.
    fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Value::Double(number) => (0x01, number.to_le_bytes().to_vec()),
            Value::Text(text) => (0x02, [&length(text.len() + 1)[..], text.as_bytes(), &[0]].concat()),
            Value::Document(document) => (0x03, document.encode()),
            Value::Array(values) => {
                let numbered = values.iter().enumerate().map(|(index, value)| (index.to_string(), value.clone()));
                (0x04, Document(numbered.collect()).encode())
            }
            Value::Binary(bytes) => (0x05, [&length(bytes.len())[..], &[0], bytes].concat()),
            Value::Bool(value) => (0x08, vec![u8::from(*value)]),
            Value::Int(number) => (0x10, number.to_le_bytes().to_vec()),
            Value::Long(number) => (0x12, number.to_le_bytes().to_vec()),
            Value::Other => (0x0A, Vec::new()),
        }
    }

    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Value::Double(number) => Some(*number),
            Value::Int(number) => Some(f64::from(*number)),
            Value::Long(number) => Some(*number as f64),
            Value::Bool(value) => Some(f64::from(u8::from(*value))),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn binary(&self) -> Option<&[u8]> {
        match self {
            Value::Binary(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub(crate) fn document(&self) -> Option<&Document> {
        match self {
            Value::Document(document) => Some(document),
            _ => None,
        }
    }
}

macro_rules! values {
    ($($from:ty => $variant:ident),*) => {
        $(impl From<$from> for Value {
            fn from(value: $from) -> Value {
                Value::$variant(value.into())
            }
        })*
    };
}
values!(f64 => Double, &str => Text, String => Text, Document => Document, Vec<Value> => Array, Vec<u8> => Binary, bool => Bool, i32 => Int);

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn size(&mut self) -> Option<usize> {
        usize::try_from(i32::from_le_bytes(self.fixed()?)).ok()
    }

    fn name(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let name = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1).map(|_| name)
    }

    fn document(&mut self) -> Option<Document> {
        let size = self.size()?.checked_sub(4)?;
        let mut inner = Reader(self.take(size)?);
        let mut fields = Vec::new();
        loop {
            let [kind] = inner.fixed()?;
            if kind == 0 {
                return Some(Document(fields));
            }
            fields.push((inner.name()?, inner.value(kind)?));
        }
    }

    fn value(&mut self, kind: u8) -> Option<Value> {
        Some(match kind {
            0x01 => Value::Double(f64::from_le_bytes(self.fixed()?)),
            0x02 => {
                let size = self.size()?;
                let text = self.take(size)?;
                Value::Text(String::from_utf8_lossy(text.strip_suffix(&[0])?).into_owned())
            }
            0x03 => Value::Document(self.document()?),
            0x04 => Value::Array(self.document()?.0.into_iter().map(|(_, value)| value).collect()),
            0x05 => {
                let size = self.size()?;
                self.take(1)?;
                Value::Binary(self.take(size)?.to_vec())
            }
            0x08 => Value::Bool(self.fixed()? != [0]),
            0x10 => Value::Int(i32::from_le_bytes(self.fixed()?)),
            0x12 => Value::Long(i64::from_le_bytes(self.fixed()?)),
            // Null; object id; date and timestamp; decimal.
            0x0A => Value::Other,
            0x07 => self.take(12).map(|_| Value::Other)?,
            0x09 | 0x11 => self.take(8).map(|_| Value::Other)?,
            0x13 => self.take(16).map(|_| Value::Other)?,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_survives_the_wire() {
        let inner = Document::new().with("text", "a@b").with("bytes", vec![1_u8, 2]);
        let document =
            Document::new().with("n", 1).with("yes", true).with("list", vec![Value::from(inner)]).with("x", 1.5);
        assert_eq!(Document::decode(&document.encode()), Some(document));
    }
}
