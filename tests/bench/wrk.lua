-- GET, or POST of $BENCH_BODY when it is set; ends with one line of counts for `run`.
-- No request() or response() function: with either, wrk would call Lua for each request.

local body = os.getenv("BENCH_BODY")
if body then
  wrk.method = "POST"
  wrk.body = body
  wrk.headers["Content-Type"] = "application/json"
end

function done(summary)
  local errors = summary.errors
  io.write(string.format(
    "\ncounts requests=%d microseconds=%d connect=%d read=%d write=%d status=%d timeout=%d\n",
    summary.requests, summary.duration, errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
