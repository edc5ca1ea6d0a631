-- GET, or POST of $BENCH_BODY when it is set; ends with one line of counts for `run`.
-- No request() or response() function, with which wrk would call Lua for each request, but where each request needs
-- another path: with $BENCH_AGENTS set, requests go to so many agents in turn.

local body = os.getenv("BENCH_BODY")
if body then
  wrk.method = "POST"
  wrk.body = body
  wrk.headers["Content-Type"] = "application/json"
end

local agents = tonumber(os.getenv("BENCH_AGENTS") or "")
if agents then
  local ready, next_one = {}, 0
  function init()
    for number = 1, agents do
      ready[number] = wrk.format(nil, (wrk.path:gsub("agent%-%x%x%x%x%x%x%x%x", string.format("agent-%08x", number), 1)))
    end
  end
  function request()
    next_one = next_one % agents + 1
    return ready[next_one]
  end
end

function done(summary)
  local errors = summary.errors
  io.write(string.format(
    "\ncounts requests=%d microseconds=%d connect=%d read=%d write=%d status=%d timeout=%d\n",
    summary.requests, summary.duration, errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
