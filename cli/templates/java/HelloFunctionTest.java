package com.example.fn;

import static org.junit.Assert.assertEquals;

import com.fnproject.fn.testing.FnTestingRule;
import org.junit.Rule;
import org.junit.Test;

public class HelloFunctionTest {

    @Rule
    public final FnTestingRule function = FnTestingRule.createDefault();

    @Test
    public void greetsTheWorldWhenNobodyIsNamed() {
        function.givenEvent().enqueue();
        function.thenRun(HelloFunction.class, "handleRequest");
        assertEquals("Hello, World!", function.getOnlyResult().getBodyAsString());
    }
}
