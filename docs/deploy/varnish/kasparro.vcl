# Varnish as a cache in front of Kasparro: varnishd -f kasparro.vcl -a :80, and KASPARRO_TRUSTED_PROXIES=127.0.0.1
# for Kasparro. docs/scale.md says what it does and how it was measured.
vcl 4.1;

import std;

backend kasparro {
    .host = "127.0.0.1";
    .port = "8000";
    .connect_timeout = 2s;
    # An export waits for up to 30 s.
    .first_byte_timeout = 40s;
    # The process answers, whatever the database does. What depends on the database, Kasparro reports itself.
    .probe = {
        .url = "/health/live";
        .interval = 1s;
        .timeout = 2s;
        .window = 3;
        .threshold = 2;
        .initial = 2;
    }
}

sub vcl_recv {
    # A cached response has the id of the request that fetched it, so each request gets its own.
    if (req.http.X-Request-ID !~ "^[A-Za-z0-9._-]{1,64}$") {
        set req.http.X-Request-ID = std.time2integer(now, 0) + "-" + req.xid;
    }
    unset req.http.X-Cacheable;
    # What may be cached. For the rest, and for requests with a key, Kasparro gets If-None-Match itself.
    if (req.url !~ "^/((data|assets)(/|\?|$)|page/|\?|$)" || req.url ~ "\.(csv|ndjson)(\?|$)"
        || req.http.Authorization || req.http.X-API-Key || req.method !~ "^(GET|HEAD)$") {
        return (pass);
    }
    set req.http.X-Cacheable = "true";
    # Equal queries in another order are one object.
    set req.url = std.querysort(req.url);
    # What stale-while-revalidate allows. If Kasparro hangs, or after an error, what stale-if-error allows.
    if (req.restarts == 0 && std.healthy(req.backend_hint)) {
        set req.grace = 10s;
    } else {
        set req.grace = 300s;
    }
}

sub vcl_backend_fetch {
    if (bereq.http.X-Cacheable) {
        # The longest query takes 15 s, and waits 3 s for a connection.
        set bereq.first_byte_timeout = 20s;
        unset bereq.http.X-Cacheable;
    }
}

sub vcl_miss {
    # There is no stale response either.
    if (req.restarts > 0) {
        return (synth(503));
    }
}

sub vcl_backend_response {
    if (beresp.status >= 500 || beresp.status == 429) {
        # An error must not take the place of a response that may still be sent.
        if (bereq.is_bgfetch) {
            return (abandon);
        }
        set beresp.ttl = 0s;
        set beresp.grace = 0s;
        set beresp.uncacheable = true;
        return (deliver);
    }
    # Varnish itself reads max-age and stale-while-revalidate.
    if (beresp.http.Cache-Control ~ "stale-if-error=[0-9]+") {
        set beresp.grace = std.duration(
            regsub(beresp.http.Cache-Control, "^.*stale-if-error=([0-9]+).*$", "\1s"), beresp.grace);
    }
}

# Kasparro does not answer: a problem document, as for its own errors.
sub vcl_backend_error {
    if (bereq.is_bgfetch) {
        return (abandon);
    }
    set beresp.http.Content-Type = "application/problem+json";
    set beresp.http.Cache-Control = "no-store";
    set beresp.http.Retry-After = "5";
    set beresp.body = {"{"request_id": ""} + bereq.http.X-Request-ID
        + {"", "type": "about:blank", "title": "Service Unavailable", "}
        + {""detail": "The service does not answer.", "status": 503}"};
    return (deliver);
}

# The same after the second attempt.
sub vcl_synth {
    if (resp.status == 503) {
        set resp.http.Content-Type = "application/problem+json";
        set resp.http.Cache-Control = "no-store";
        set resp.http.Retry-After = "5";
        set resp.http.X-Request-ID = req.http.X-Request-ID;
        set resp.body = {"{"request_id": ""} + req.http.X-Request-ID
            + {"", "type": "about:blank", "title": "Service Unavailable", "}
            + {""detail": "The service does not answer.", "status": 503}"};
        return (deliver);
    }
}

sub vcl_deliver {
    if (resp.status >= 500 && req.restarts == 0 && req.http.X-Cacheable) {
        return (restart);
    }
    set resp.http.X-Request-ID = req.http.X-Request-ID;
    if (obj.hits > 0) {
        # They describe the request that fetched the response.
        unset resp.http.Server-Timing;
        unset resp.http.RateLimit;
        unset resp.http.RateLimit-Policy;
    }
}
