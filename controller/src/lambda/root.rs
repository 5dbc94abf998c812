//! The composition root: environment, log and runtime become a function that Lambda calls, one invocation at a time.

use std::{process::ExitCode, sync::Arc};

use cleanroom_contract::printable;
use cleanroom_controller::execution::Failed;
use lambda_runtime::{Diagnostic, LambdaEvent, Runtime, service_fn};
use serde_json::{Value, json};
use tokio::{task::spawn_blocking, time::Instant};

use super::{
    account::Account,
    environment::Environment,
    invocation::{Invocation, panicked},
    log::{Level, Log},
};

/// The stack of the thread that works, in bytes: as a program's first thread has it.
const STACK: usize = 8 << 20;

/// The longest cause of an error, in characters: Step Functions takes 32,768 bytes.
const LONGEST: usize = 4_000;

/// The longest facts that are logged as well, in bytes of JSON.
const SHORT: usize = 2_048;

/// Serves invocations until Lambda ends the process.
pub(crate) fn run() -> ExitCode {
    let read = Environment::read(|name| {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    });
    let environment = match read {
        Ok(environment) => environment,
        Err(error) => {
            let more = json!({ "why": printable(&error.to_string()) });
            Log::new("none", "").line(Level::Error, "can not begin", more);
            return ExitCode::FAILURE;
        }
    };
    let log = Log::new(environment.entrance.word(), &environment.stack);
    log.take_panics();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().thread_stack_size(STACK).build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(serve(environment, &log)).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            log.line(Level::Error, "the runtime ended", json!({ "why": printable(&why) }));
            ExitCode::FAILURE
        }
    }
}

async fn serve(environment: Environment, log: &Log) -> Result<(), lambda_runtime::Error> {
    let account = Arc::new(Account::new(environment, log.clone()));
    let service = service_fn(|event: LambdaEvent<Value>| answer(&account, log, event));
    Runtime::new(service).run().await
}

/// Answers one invocation, in a thread of its own.
async fn answer(
    account: &Arc<Account>,
    log: &Log,
    event: LambdaEvent<Value>,
) -> Result<Value, Diagnostic> {
    let began = Instant::now();
    let (event, context) = event.into_parts();
    log.begin(&context.request_id, &event);
    let invocation = Invocation {
        account: account.clone(),
        log: log.clone(),
        event,
        function: context.invoked_function_arn,
        deadline: context.deadline,
    };
    let ended = spawn_blocking(move || invocation.work()).await;
    let ended = ended.unwrap_or_else(|error| {
        let why = error.try_into_panic().map_or_else(|e| e.to_string(), |p| panicked(p.as_ref()));
        Err(Failed { retryable: false, why })
    });
    let seconds = began.elapsed().as_secs_f64();
    match ended {
        Ok(facts) => {
            let short = Some(&facts).filter(|facts| facts.to_string().len() <= SHORT);
            log.line(Level::Info, "answered", json!({ "seconds": seconds, "facts": short }));
            Ok(facts)
        }
        Err(failed) => {
            let Failed { retryable, why } = &failed;
            let more = json!({ "seconds": seconds, "retryable": retryable, "why": printable(why) });
            log.line(Level::Error, "failed", more);
            Err(diagnostic(failed))
        }
    }
}

/// An error as Step Functions reads it: its name says whether another try may help.
fn diagnostic(Failed { retryable, why }: Failed) -> Diagnostic {
    let name = if retryable { "Cleanroom.Retryable" } else { "Cleanroom.Failed" };
    let error_message = why.chars().take(LONGEST).collect();
    Diagnostic { error_type: name.to_owned(), error_message }
}
