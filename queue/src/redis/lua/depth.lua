-- How much there is. ARGV: now. Answers: for each lane its name, its messages, those that are due and when the first is
-- due; functions and their running messages; functions and their dead ones.
local answer = {}
for _, set in ipairs(LANES) do
    local lanes = call('ZRANGE', set, 0, -1, 'WITHSCORES')
    for at = 1, #lanes, 2 do
        local key = base .. 'lane:' .. lanes[at]
        answer[#answer + 1] = { lanes[at], call('ZCARD', key), call('ZCOUNT', key, '-inf', ARGV[1]), lanes[at + 1] }
    end
end
return { answer, call('HGETALL', base .. 'running'), call('HGETALL', base .. 'dead') }
