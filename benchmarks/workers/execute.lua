-- wrk's side: POST one prepared request again and again, and count the answers that are wrong.
local bodies, expected
local threads = {}

function setup(thread)
    table.insert(threads, thread)
end

function init(args)
    wrk.method = "POST"
    wrk.body = args[1]
    wrk.headers["Content-Type"] = "application/json"
    wrk.headers["Accept"] = "application/json, text/event-stream"
    expected = args[2]
    wrong = 0
end

function response(status, headers, body)
    if status ~= 200 or not string.find(body, expected, 1, true) then
        wrong = wrong + 1
    end
end

function done(summary, latency, requests)
    local failed = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
    for _, thread in ipairs(threads) do
        failed = failed + thread:get("wrong")
    end
    io.write(string.format("answered %d wrong %d microseconds %d\n", summary.requests, failed, summary.duration))
end
