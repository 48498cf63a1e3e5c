-- Forgets ended messages. ARGV: ended at or before, most messages, states. Answers how many.
local before, left, gone = ARGV[1], tonumber(ARGV[2]), 0
for at = 3, #ARGV do
    local state = ARGV[at]
    local ids = call('ZRANGEBYSCORE', base .. 'ended:' .. state, '-inf', before, 'LIMIT', 0, left)
    for _, id in ipairs(ids) do
        local f = call('HMGET', base .. 'm:' .. id, 'fn', 'ik')
        call('ZREM', base .. 'ended:' .. state, id)
        if f[1] then
            call('ZREM', base .. 'state:' .. state, id .. f[1])
            if state == DEAD then
                count('dead', f[1], -1)
            end
        end
        if f[2] and call('HGET', base .. 'keys', f[2]) == id then
            call('HDEL', base .. 'keys', f[2])
        end
        call('UNLINK', base .. 'm:' .. id, base .. 'b:' .. id)
    end
    gone, left = gone + #ids, left - #ids
end
return gone
