//! The attributes of the crate `resource_pool`, which re-exports and documents them.
//!
//! Both turn an `async fn` into a plain one that gives its body to a function of `resource_pool::attributes`. An error in
//! the use of an attribute becomes a `compile_error!` at the place that has to change.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::{ToTokens, quote};
use syn::parse::{Parse, ParseStream};
use syn::{Error, Expr, Ident, ItemFn, Result, Token, parse_macro_input};

/// Runs an `async fn main` on the global pool.
#[proc_macro_attribute]
pub fn main(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let arguments = parse_macro_input!(arguments as Arguments);
    let function = parse_macro_input!(item as ItemFn);
    finish(expand_main(arguments, function))
}

/// Runs an `async fn` as a test that has a pool of its own.
#[proc_macro_attribute]
pub fn test(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let arguments = parse_macro_input!(arguments as Arguments);
    let function = parse_macro_input!(item as ItemFn);
    finish(expand_test(arguments, function))
}

fn finish(expanded: Result<Tokens>) -> TokenStream {
    expanded.unwrap_or_else(Error::into_compile_error).into()
}

/// The arguments, which both attributes share.
#[derive(Default)]
struct Arguments {
    builder: Option<Expr>,
    worker_threads: Option<Expr>,
}

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut arguments = Arguments::default();
        while !input.is_empty() {
            let key: Ident = input.parse()?;
            let place = match key.to_string().as_str() {
                "builder" => &mut arguments.builder,
                "worker_threads" => &mut arguments.worker_threads,
                "flavor" => return Err(Error::new_spanned(key, FLAVOR)),
                _ => return Err(Error::new_spanned(key, "expected `worker_threads = N` or `builder = EXPRESSION`")),
            };
            input.parse::<Token![=]>()?;
            let value: Expr = input.parse()?;
            if place.replace(value).is_some() {
                return Err(Error::new_spanned(key, "this argument is given twice"));
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(arguments)
    }
}

const FLAVOR: &str = "the pool has one flavor of runtime, with worker threads. Its drivers answer on these threads, so that a \
                      blocked `main` stalls no connection. Remove `flavor`, and choose the number of threads by \
                      `worker_threads = N`";

impl Arguments {
    /// The builder of the pool.
    fn into_builder(self) -> Tokens {
        let Arguments { builder, worker_threads } = self;
        let mut tokens = match builder {
            Some(builder) => quote!((#builder)),
            None => quote!(::resource_pool::ResourcePool::builder()),
        };
        if let Some(workers) = worker_threads {
            tokens.extend(quote!(.worker_threads(#workers)));
        }
        tokens
    }
}

fn expand_main(arguments: Arguments, function: ItemFn) -> Result<Tokens> {
    check(&function)?;
    if let Some(input) = function.sig.inputs.first() {
        return Err(Error::new_spanned(input, "`main` takes no parameter. `ResourcePool::global()` is its pool"));
    }
    let (builder, body) = (arguments.into_builder(), &function.block);
    Ok(plain(&function, quote!(::resource_pool::attributes::main(#builder, async #body))))
}

fn expand_test(arguments: Arguments, function: ItemFn) -> Result<Tokens> {
    check(&function)?;
    if let Some(input) = function.sig.inputs.iter().nth(1) {
        return Err(Error::new_spanned(input, "a test takes at most one parameter, `pool: ResourcePool`"));
    }
    let parameter = match function.sig.inputs.first() {
        Some(pool) => pool.to_token_stream(),
        None => quote!(_: ::resource_pool::ResourcePool),
    };
    let (builder, body) = (arguments.into_builder(), &function.block);
    let test = plain(&function, quote!(::resource_pool::attributes::test(#builder, |#parameter| async move #body)));
    Ok(quote!(#[::core::prelude::v1::test] #test))
}

fn check(ItemFn { sig, .. }: &ItemFn) -> Result<()> {
    if sig.asyncness.is_none() {
        let advice = "the function is not `async`. For threads, `resource_pool::blocking::run` runs a closure";
        return Err(Error::new_spanned(sig.fn_token, advice));
    }
    match sig.generics.params.first() {
        Some(parameter) => Err(Error::new_spanned(parameter, "the function cannot be generic")),
        None => Ok(()),
    }
}

/// The function without `async` and parameters, with this body.
fn plain(ItemFn { attrs, vis, sig, .. }: &ItemFn, body: Tokens) -> Tokens {
    let (name, output) = (&sig.ident, &sig.output);
    quote! {
        #(#attrs)*
        #vis fn #name() #output {
            #body
        }
    }
}
