//! Reading all pages of what comes in pages, up to a bound.
//!
//! Purpose: one bound and one way of failing for every paginated call. Touches the network through the stream it is
//! given. Never hands over some of the pages as if they were all.

use std::{error::Error, fmt::Display};

use aws_smithy_async::future::pagination_stream::PaginationStream;
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use cleanroom_cloud::{CloudError, ErrorKind, Result};

use crate::error::{fail, own};

/// The most pages of one answer. Of the services' usual page sizes this is a million things: more is a service that
/// never ends, not an account.
pub(crate) const MAX_PAGES: usize = 1000;

/// What a paginator sends.
pub(crate) type Pages<T, E> = PaginationStream<std::result::Result<T, SdkError<E, HttpResponse>>>;

/// All pages of a call, or the error that kept one of them back.
pub(crate) async fn all<T, E>(
    operation: &'static str,
    resource: impl Display,
    mut stream: Pages<T, E>,
) -> Result<Vec<T>>
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let mut pages = Vec::new();
    while let Some(page) = stream.next().await {
        if pages.len() == MAX_PAGES {
            return Err(too_many(operation, resource));
        }
        pages.push(page.map_err(|e| fail(operation, &resource, e))?);
    }
    Ok(pages)
}

/// The error of an answer that goes on after the bound.
pub(crate) fn too_many(operation: &'static str, resource: impl Display) -> CloudError {
    let message = format!("the answer goes on after {MAX_PAGES} pages");
    own(operation, resource, ErrorKind::Other, "TooManyPages", message)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use aws_sdk_iam::operation::list_role_policies::ListRolePoliciesError;
    use aws_smithy_async::future::pagination_stream::fn_stream::FnStream;

    use super::*;

    /// A stream of as many pages as it is asked for, up to `pages`, and the number that were taken.
    fn counted(pages: usize) -> (Pages<usize, ListRolePoliciesError>, Arc<AtomicUsize>) {
        let taken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&taken);
        let stream = PaginationStream::new(FnStream::new(move |to| {
            Box::pin(async move {
                for page in 0..pages {
                    count.fetch_add(1, Ordering::Relaxed);
                    if to.send(Ok(page)).await.is_err() {
                        return;
                    }
                }
            })
        }));
        (stream, taken)
    }

    #[tokio::test]
    async fn as_many_pages_as_the_bound_are_all() {
        let (stream, _) = counted(MAX_PAGES);
        let pages = all("iam:ListRolePolicies", "web", stream).await.expect("within the bound");
        assert_eq!(pages, (0..MAX_PAGES).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn an_answer_without_end_is_an_error_and_is_given_up() {
        let (stream, taken) = counted(usize::MAX);
        let error = all("iam:ListRolePolicies", "web", stream).await.expect_err("no end");
        assert_eq!((error.code.as_str(), error.resource.as_str()), ("TooManyPages", "web"));
        assert!(taken.load(Ordering::Relaxed) <= MAX_PAGES + 2);
    }
}
