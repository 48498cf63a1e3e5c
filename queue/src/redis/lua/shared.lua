-- What the scripts share.
--
-- KEYS[1] is the queue's name in braces and a colon. All its keys begin so, and are in one slot of a cluster:
--   :seq            the last sequence number
--   :m:<id>         a message: a hash of the fields of FIELDS
--   :b:<id>         what it carries, while it may still run
--   :keys           <function>:<idempotency key> -> id
--   :lane:<p>:<fn>  waiting messages of a priority and function: <seq><id> by when they are due
--   :lanes:<p>      lanes of a priority, <p>:<fn>, by when the first message is due
--   :leases         ids of running messages by the end of their lease
--   :deadlines      ids of waiting messages by their deadline
--   :state:<n>      messages in a state: <id><function> by sequence number
--   :ended:<n>      ids of ended messages by when they ended
--   :running, :dead how many messages of each function are
-- Times are milliseconds since 1970. States: 0 waits, 1 runs, 2 done, 3 dead, 4 cancelled.
local call = redis.call
local base = KEYS[1]
local WAITING, RUNNING, DONE, DEAD, CANCELLED = '0', '1', '2', '3', '4'
-- seq, id, function, app, priority, state, due, deadline, created, started, leased until, ended, lease, attempts,
-- attempts max, pause min, pause max, jitter, worker, error, payload bytes
local FIELDS = {
    'seq', 'id', 'fn', 'app', 'pr', 'st', 'due', 'dl', 'cr', 'sa', 'lu', 'en', 'le', 'at', 'am', 'pi', 'pa', 'ji',
    'wk', 'er', 'pb',
}

local function row(id)
    return call('HMGET', base .. 'm:' .. id, unpack(FIELDS))
end

local function rank(seq, id)
    return string.format('%016.0f', tonumber(seq)) .. id
end

-- The sets of lanes by priority, the highest first.
local LANES = { base .. 'lanes:2', base .. 'lanes:1', base .. 'lanes:0' }

-- To be called after a lane got or lost messages.
local function lane_changed(lane)
    local first, lanes = call('ZRANGE', base .. 'lane:' .. lane, 0, 0, 'WITHSCORES'), base .. 'lanes:' .. string.sub(lane, 1, 1)
    if first[1] then
        call('ZADD', lanes, first[2], lane)
    else
        call('ZREM', lanes, lane)
    end
end

local function count(what, fn, by)
    if call('HINCRBY', base .. what, fn, by) == 0 then
        call('HDEL', base .. what, fn)
    end
end

-- Tells all processes, the one that asks too, that a message waits that is due then.
local function tell(channel, origin, due)
    if due then
        call('PUBLISH', channel, origin .. ' ' .. string.format('%.0f', due))
    end
end
