-- GETs, each with another key than the last: $KEYS_PREFIX and a number from $KEYS_FIRST on, or over and over those under
-- $KEYS_COUNT in no order. Ends with the line of counts that `run` reads.

local prefix, number = os.getenv("KEYS_PREFIX"), tonumber(os.getenv("KEYS_FIRST"))
local count = tonumber(os.getenv("KEYS_COUNT") or "")
local head = "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " .. prefix .. "%d\r\n\r\n"

function request()
  local key = number
  if count then
    -- a prime: every key is met before one is met again
    key = number * 15485863 % count
  end
  number = number + 1
  return string.format(head, wrk.path, key)
end

function done(summary)
  local errors = summary.errors
  io.write(string.format(
    "\ncounts requests=%d microseconds=%d connect=%d read=%d write=%d status=%d timeout=%d\n",
    summary.requests, summary.duration, errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
