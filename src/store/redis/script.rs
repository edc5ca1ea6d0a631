//! Scripts, called by their digest: a server that does not know one is sent it whole, and knows it from then on.

use ::redis::{Cmd, RedisResult, ToRedisArgs, Value};
use ::redis::{ErrorKind, Script as Digest, ServerErrorKind};

use super::connection::Connection;

pub(super) struct Script {
    text: Box<str>,
    digest: String,
}

/// A script with what it is called with. Its keys lie in one hash slot.
pub(super) struct Call<'s> {
    script: &'s Script,
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
}

impl Script {
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.into(), digest: Digest::new(text).get_hash().to_owned() }
    }

    pub(super) fn key(&self, key: impl ToRedisArgs) -> Call<'_> {
        Call { script: self, keys: key.to_redis_args(), arguments: Vec::new() }
    }

    pub(super) fn arg(&self, argument: impl ToRedisArgs) -> Call<'_> {
        Call { script: self, keys: Vec::new(), arguments: argument.to_redis_args() }
    }
}

impl Call<'_> {
    pub(super) fn key(&mut self, key: impl ToRedisArgs) -> &mut Self {
        key.write_redis_args(&mut self.keys);
        self
    }

    pub(super) fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        argument.write_redis_args(&mut self.arguments);
        self
    }

    pub(super) async fn run(&self, connection: &mut Connection) -> RedisResult<Value> {
        match connection.ask(&self.command("EVALSHA", &self.script.digest)).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                connection.ask(&self.command("EVAL", &self.script.text)).await
            }
            replied => replied,
        }
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let bytes =
            self.keys.iter().chain(&self.arguments).map(Vec::len).sum::<usize>() + name.len() + script.len() + 4;
        let mut command = Cmd::with_capacity(3 + self.keys.len() + self.arguments.len(), bytes);
        command.arg(name).arg(script).arg(self.keys.len()).arg(&*self.keys).arg(&*self.arguments);
        command
    }
}
