-- Changes messages that are as the caller thinks. ARGV: now, channel, origin, then for each message: id, its state, its
-- lease or '', 'ended' if that must be over, what to do, a time, attempts, an error or ''. What to do:
--   hold    has the lease end at the time
--   end     done
--   cancel  cancelled
--   bury    dead
--   again   waits until the time, with so many attempts
--   back    waits as it did before it was reserved
--   revive  waits from the time on, no attempt counted, no deadline
-- Answers for each message 'ok', '' if there is none, or its state and lease, and nothing was changed.
local now, channel, origin = ARGV[1], ARGV[2], ARGV[3]
local FIRST, WIDTH = 4, 8
local answers, lanes, first = {}, {}, nil

local function leave(m)
    local member = m.id .. m.fn
    call('ZREM', base .. 'state:' .. m.st, member)
    if m.st == RUNNING then
        call('ZREM', base .. 'leases', m.id)
        count('running', m.fn, -1)
    elseif m.st == WAITING then
        call('ZREM', base .. 'lane:' .. m.lane, rank(m.seq, m.id))
        call('ZREM', base .. 'deadlines', m.id)
        lanes[m.lane] = true
    else
        call('ZREM', base .. 'ended:' .. m.st, m.id)
        if m.st == DEAD then
            count('dead', m.fn, -1)
        end
    end
end

local function enter(m, state)
    call('ZADD', base .. 'state:' .. state, m.seq, m.id .. m.fn)
    call('HSET', m.key, 'st', state)
end

local function finish(m, state)
    leave(m)
    enter(m, state)
    call('HSET', m.key, 'en', now)
    call('ZADD', base .. 'ended:' .. state, now, m.id)
    if state == DEAD then
        count('dead', m.fn, 1)
    else
        call('UNLINK', base .. 'b:' .. m.id)
    end
end

local function wait(m, due, deadline)
    leave(m)
    enter(m, WAITING)
    call('HSET', m.key, 'due', due)
    call('ZADD', base .. 'lane:' .. m.lane, due, rank(m.seq, m.id))
    if deadline then
        call('ZADD', base .. 'deadlines', deadline, m.id)
    end
    lanes[m.lane] = true
    first = math.min(first or tonumber(due), tonumber(due))
end

local actions = {
    hold = function(m, time)
        call('HSET', m.key, 'lu', time)
        call('ZADD', base .. 'leases', time, m.id)
    end,
    ['end'] = function(m) finish(m, DONE) end,
    cancel = function(m) finish(m, CANCELLED) end,
    bury = function(m) finish(m, DEAD) end,
    again = function(m, time, attempts)
        wait(m, time, m.dl)
        call('HSET', m.key, 'at', attempts)
    end,
    back = function(m)
        wait(m, m.due, m.dl)
        call('HINCRBY', m.key, 'at', -1)
    end,
    revive = function(m, time)
        wait(m, time, nil)
        call('HSET', m.key, 'at', 0)
        call('HDEL', m.key, 'dl', 'en')
    end,
}

for at = FIRST, #ARGV, WIDTH do
    local id, state, lease = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local key = base .. 'm:' .. id
    local f = call('HMGET', key, 'seq', 'fn', 'pr', 'st', 'le', 'lu', 'due', 'dl')
    local answer
    if not f[1] then
        answer = ''
    elseif f[4] ~= state or (lease ~= '' and f[5] ~= lease)
        or (ARGV[at + 3] == 'ended' and tonumber(f[6]) > tonumber(now)) then
        answer = f[4] .. ' ' .. f[5]
    else
        local m = { id = id, key = key, seq = f[1], fn = f[2], st = f[4], due = f[7], dl = f[8], lane = f[3] .. ':' .. f[2] }
        actions[ARGV[at + 4]](m, ARGV[at + 5], ARGV[at + 6])
        if ARGV[at + 7] ~= '' then
            call('HSET', key, 'er', ARGV[at + 7])
        end
        answer = 'ok'
    end
    answers[#answers + 1] = answer
end
for lane in pairs(lanes) do
    lane_changed(lane)
end
tell(channel, origin, first)
return answers
