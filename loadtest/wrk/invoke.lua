-- Calls one function with a small body and prints what wrk's own summary leaves out.
--
--   FN_ID=$(kiln inspect function demo hello id | tr -d '"')
--   wrk -t2 -c64 -d10s --latency -s loadtest/wrk/invoke.lua http://127.0.0.1:8080/invoke/$FN_ID
--
-- BODY (default "Ada") is what is sent.

wrk.method = "POST"
wrk.body = os.getenv("BODY") or "Ada"
wrk.headers["Content-Type"] = "text/plain"

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init()
  busy, failed = 0, 0
end

function response(status)
  if status == 503 then
    busy = busy + 1
  elseif status >= 400 then
    failed = failed + 1
  end
end

function done(summary, latency)
  local busy_all, failed_all = 0, 0
  for _, thread in ipairs(threads) do
    busy_all = busy_all + thread:get("busy")
    failed_all = failed_all + thread:get("failed")
  end
  io.write(string.format("calls %d, refused as busy (503) %d, failed %d\n", summary.requests, busy_all, failed_all))
  io.write(string.format("latency ms: p50 %.2f  p90 %.2f  p99 %.2f  p99.9 %.2f  max %.2f\n",
    latency:percentile(50) / 1000, latency:percentile(90) / 1000, latency:percentile(99) / 1000,
    latency:percentile(99.9) / 1000, latency.max / 1000))
end
