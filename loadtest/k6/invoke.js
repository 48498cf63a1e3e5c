// Calls a function at a fixed rate and fails the run if calls fail or are slow.
//
//   k6 run -e URL=http://127.0.0.1:8080/t/demo/hello loadtest/k6/invoke.js
//
// RATE (calls per second, default 200), DURATION (default 10s), BODY (default "Ada").

import http from 'k6/http';
import { check } from 'k6';

const url = __ENV.URL;
if (!url) {
  throw new Error('name the function: -e URL=http://127.0.0.1:8080/t/APP/SOURCE');
}
const rate = Number(__ENV.RATE || 200);

export const options = {
  scenarios: {
    calls: {
      executor: 'constant-arrival-rate',
      rate,
      timeUnit: '1s',
      duration: __ENV.DURATION || '10s',
      preAllocatedVUs: Math.max(10, Math.ceil(rate / 10)),
      maxVUs: Math.max(50, rate),
    },
  },
  thresholds: {
    http_req_failed: ['rate<0.001'],
    http_req_duration: ['p(95)<50'],
  },
};

export default function () {
  const answer = http.post(url, __ENV.BODY || 'Ada', { headers: { 'Content-Type': 'text/plain' } });
  check(answer, {
    'status is 200': (got) => got.status === 200,
    'names its call': (got) => got.headers['Fn-Call-Id'] !== undefined,
  });
}
